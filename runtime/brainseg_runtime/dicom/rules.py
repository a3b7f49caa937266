"""Which modality a series is: its physics and its description, read by declared rules, must agree."""

import hashlib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydicom.dataset import Dataset

from brainseg_runtime.dicom.series import Series
from brainseg_runtime.errors import UsageRefused

__all__ = ["Facts", "Reading", "Rules", "facts_of", "load_rules", "read_series"]

FORMAT = 1
_TIMES = ("tr", "te", "ti")
_PREFERENCES = ("3d", "thin", "slices")


@dataclass(frozen=True)
class Facts:
    """What the headers of a series say, as far as rules look at it."""

    description: str
    """SeriesDescription and ProtocolName in lower case, every sign but a-z, 0-9, + and * a space."""
    image_type: frozenset[str]
    tr: float | None
    """Repetition time, in ms."""
    te: float | None
    """Echo time, in ms."""
    ti: float | None
    """Inversion time, in ms; None where there is none."""
    echoes: int
    """How many different echo times the slices have."""
    is_3d: bool
    agent: str
    """The contrast agent, normalised as the description is."""
    slices: int


@dataclass(frozen=True)
class Physics:
    """Ranges that say what a series was weighted by."""

    id: str
    says: str
    ranges: Mapping[str, tuple[float, float]]
    """Of ``tr``, ``te``, ``ti``, in ms, both ends included."""
    without: tuple[str, ...]
    """Times that must be absent or 0."""


@dataclass(frozen=True)
class Description:
    """A pattern that says what a series is called."""

    id: str
    says: str
    pattern: re.Pattern[str]


@dataclass(frozen=True)
class Contrast:
    """How a series with a contrast agent is told from one without."""

    weighting: str
    becomes: str
    no_agent: re.Pattern[str]
    yes: re.Pattern[str]
    no: re.Pattern[str]


@dataclass(frozen=True)
class Rules:
    """A table of rules."""

    name: str
    sha256: str
    silent_description: bool
    prefer: tuple[str, ...]
    min_slices: int
    drop_types: frozenset[str]
    drop_description: re.Pattern[str]
    descriptions: tuple[Description, ...]
    physics: tuple[Physics, ...]
    contrast: Contrast

    @property
    def modalities(self) -> frozenset[str]:
        """Every modality that the rules can tell."""
        return frozenset({rule.says for rule in self.physics} | {self.contrast.becomes})


@dataclass(frozen=True)
class Reading:
    """What a series was taken for, and why; the words come from the rules, never from the header."""

    verdict: Literal["candidate", "contradictory", "nothing"]
    modality: str
    """Of a candidate; empty otherwise."""
    why: str


def load_rules(path: Path | None = None) -> Rules:
    """The rules in a TOML file, or the ones that come with brainseg.

    Raises:
        UsageRefused: ``E_RULES``.
    """
    try:
        source = path or files("brainseg_runtime.dicom") / "rules.toml"
        text = source.read_bytes()
        return _rules(tomllib.loads(text.decode()), hashlib.sha256(text).hexdigest())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, re.error) as error:
        raise UsageRefused(
            "E_RULES",
            f"the rules in {path or 'rules.toml'} cannot be used: {type(error).__name__}: {error}.",
            "Compare them with the rules that come with brainseg (docs/dicom.md).",
        ) from error


def facts_of(series: Series) -> Facts:
    """What the headers of a series say; damaged fields say nothing."""
    header = series.header
    echoes = {_number(i.header.get("EchoTime")) for i in series.instances} - {None}
    shared = _groups(header)
    inversions = _first(shared, "MRModifierSequence", "InversionTimes")
    many = header.get("PerFrameFunctionalGroupsSequence")
    return Facts(
        description=_normal(f"{header.get('SeriesDescription') or ''} {header.get('ProtocolName') or ''}"),
        image_type=frozenset(str(word).upper().strip() for word in header.get("ImageType") or ()),
        tr=_number(header.get("RepetitionTime"))
        or _number(_first(shared, "MRTimingAndRelatedParametersSequence", "RepetitionTime")),
        te=_number(header.get("EchoTime")) or _number(_first(shared, "MREchoSequence", "EffectiveEchoTime")),
        ti=_number(header.get("InversionTime")) or _number(inversions),
        echoes=max(len(echoes), 1),
        is_3d=header.get("MRAcquisitionType") == "3D",
        agent=_agent(header),
        slices=len(many) if many else len(series.instances),
    )


def read_series(facts: Facts, rules: Rules) -> Reading:
    """What the rules make of a series."""
    dropped = _dropped(facts, rules)
    if dropped:
        return Reading("nothing", "", dropped)
    called = next((rule for rule in rules.descriptions if rule.pattern.search(facts.description)), None)
    measured = [rule for rule in rules.physics if _holds(rule, facts)]
    weightings = {rule.says for rule in measured}
    physics = ", ".join(f"{rule.says} (rule {rule.id})" for rule in measured) or "nothing"
    name = f"{called.says} (rule {called.id})" if called else "nothing"
    why = f"its physics ({_times(facts)}) say {physics}, its description says {name}"
    if len(weightings) > 1 or (weightings and called and weightings != {called.says}):
        return Reading("contradictory", "", why)
    if not weightings or not (called or rules.silent_description):
        return Reading("nothing", "", why)
    return _with_contrast(weightings.pop(), facts, rules.contrast, why)


def _with_contrast(weighting: str, facts: Facts, contrast: Contrast, why: str) -> Reading:
    if weighting != contrast.weighting:
        return Reading("candidate", weighting, why)
    agent = bool(facts.agent) and not contrast.no_agent.search(facts.agent)
    no = bool(contrast.no.search(facts.description))
    # "no contrast" must not count as contrast: what is negated is taken out first.
    yes = bool(contrast.yes.search(contrast.no.split(facts.description)[0] if no else facts.description))
    why += f"; its header names {'an' if agent else 'no'} agent, its description {_said(yes, no)}"
    if no and (agent or yes):
        return Reading("contradictory", "", why)
    return Reading("candidate", contrast.becomes if agent or yes else weighting, why)


def _said(yes: bool, no: bool) -> str:
    if yes and no:
        return "says both with and without"
    return "says with" if yes else "says without" if no else "says nothing of it"


def _dropped(facts: Facts, rules: Rules) -> str:
    """Why a series is never an input; empty if it may be one."""
    if facts.slices < rules.min_slices:
        return f"it has {facts.slices} slices, fewer than {rules.min_slices}"
    types = facts.image_type & rules.drop_types
    if types:
        return f"its image type is {', '.join(sorted(types))}"
    if rules.drop_description.search(facts.description):
        return "its description is of a kind that is no input"
    if facts.echoes > 1:
        return f"it has {facts.echoes} echo times"
    return ""


def _holds(rule: Physics, facts: Facts) -> bool:
    times = {"tr": facts.tr, "te": facts.te, "ti": facts.ti}
    inside = all((value := times[key]) is not None and a <= value <= b for key, (a, b) in rule.ranges.items())
    return inside and not any(times[key] for key in rule.without)


def _times(facts: Facts) -> str:
    times = (("TR", facts.tr), ("TE", facts.te), ("TI", facts.ti))
    return ", ".join(f"{key} {value:g}" for key, value in times if value) or "no TR, TE, TI"


def _rules(raw: Mapping[str, Any], sha256: str) -> Rules:
    if raw["format"] != FORMAT:
        raise ValueError(f"format {raw['format']}, not {FORMAT}")
    known = {"format", "name", "silent_description", "prefer", "drop", "description", "physics", "contrast"}
    if set(raw) - known:
        raise ValueError(f"unknown keys {sorted(set(raw) - known)}")
    prefer = tuple(raw["prefer"])
    if set(prefer) - set(_PREFERENCES):
        raise ValueError(f"prefer knows {_PREFERENCES}, not {prefer}")
    contrast = raw["contrast"]
    return Rules(
        name=str(raw["name"]),
        sha256=sha256,
        silent_description=bool(raw["silent_description"]),
        prefer=prefer,
        min_slices=int(raw["drop"]["min_slices"]),
        drop_types=frozenset(str(word).upper() for word in raw["drop"]["image_type"]),
        drop_description=re.compile(raw["drop"]["description"]),
        descriptions=tuple(
            Description(str(r["id"]), str(r["says"]), re.compile(r["pattern"])) for r in raw["description"]
        ),
        physics=tuple(_physics(rule) for rule in raw["physics"]),
        contrast=Contrast(
            str(contrast["weighting"]),
            str(contrast["becomes"]),
            re.compile(contrast["no_agent"]),
            re.compile(contrast["yes"]),
            re.compile(contrast["no"]),
        ),
    )


def _physics(raw: Mapping[str, Any]) -> Physics:
    unknown = set(raw) - {"id", "says", "without", *_TIMES}
    if unknown or set(raw.get("without", ())) - set(_TIMES):
        raise ValueError(f"physics {raw.get('id')} speaks of {sorted(unknown) or raw['without']}")
    ranges = {key: (float(raw[key][0]), float(raw[key][1])) for key in _TIMES if key in raw}
    return Physics(str(raw["id"]), str(raw["says"]), ranges, tuple(raw.get("without", ())))


def _normal(text: str) -> str:
    return re.sub(r"[^a-z0-9+*]+", " ", text.lower()).strip()


def _agent(header: Dataset) -> str:
    agent = _normal(str(header.get("ContrastBolusAgent") or ""))
    coded: Sequence[Dataset] = header.get("ContrastBolusAgentSequence") or ()
    return agent or _normal(" ".join(str(item.get("CodeMeaning", "")) for item in coded))


def _groups(header: Dataset) -> tuple[Dataset, ...]:
    """Shared and first frame's functional groups of an Enhanced instance."""
    return tuple(
        header[name][0]
        for name in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
        if header.get(name)
    )


def _first(groups: Sequence[Dataset], macro: str, field: str) -> object:
    for group in groups:
        if group.get(macro):
            return group[macro][0].get(field)
    return None


def _number(value: object) -> float | None:
    """A header's number, the first of several; None if it is none."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        value = value[0] if value else None
    try:
        return None if value in (None, "") else float(str(value))
    except ValueError:
        return None
