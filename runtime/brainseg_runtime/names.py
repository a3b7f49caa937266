"""What the name of an image file says: which modality it is, and of which scan."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from brainseg_runtime.spec import ModelSpec

__all__ = ["ALIASES", "Names", "Reading", "words"]

_AGENTS = ("ce", "gd", "gad", "gadolinium", "contrast", "post")
_NEGATIONS = ("pre", "no", "non", "without")

ALIASES: Mapping[str, tuple[str, ...]] = {
    "t1": ("t1", "t1n", "t1w", "t1pre"),
    "t1c": (
        *("t1c", "t1ce", "t1gd", "t1gad", "t1post", "t1km", "ct1", "t1 c", "sub ... ce ... t1w"),
        *(f"{t1} ... {agent}" for t1 in ("t1", "t1w") for agent in _AGENTS),
    ),
    "t2": ("t2", "t2w"),
    "flair": (
        *("flair", "fla", "t2f", "t2flair", "t2 flair", "t2w flair", "flair t2", "flair t2w"),
        *("tirm", "t2 tirm", "t2 ... dark fluid"),
    ),
    "truth": (
        *("seg", "dseg", "segmentation", "label", "labels", "mask", "truth", "gt", "groundtruth"),
        *("ground truth", "otmulticlass"),
    ),
    "other": (
        *("brain mask", "bet mask", "brain seg", "brain ... segmentation"),
        *("t2 star", "t1 map", "t2 map"),
    ),
}
"""What an image is -> the words of its file's name that say so; ``...`` stands for any words between.

A word is a run of letters and digits, in either case. The words that end last in a name decide, and
of those that end at the same place the longest; so ``t1_to_t2`` is a t2 and ``t1_post`` a t1c. A word
such as "contrast" right behind "no" or "pre" does not count. ``other`` is no modality and no truth.
"""

_BIDS = re.compile(r"sub-[a-z0-9]+(?:_ses-[a-z0-9]+)?(?=_)", re.IGNORECASE)
_WORD = r"[^\W_]+"
_SEPARATORS = " _-.+"


@dataclass(frozen=True)
class Reading:
    """What a name says."""

    role: str
    """A key of the table: a modality, ``"truth"`` or ``"other"``."""
    alias: str
    """The words that said so."""
    before: str
    """What stands before them: the scan, in most layouts."""
    behind: str
    """What stands behind them."""


class Names:
    """Reads file names by the aliases of a model, and by ``ALIASES`` for what the model does not use."""

    def __init__(self, spec: ModelSpec) -> None:
        own = {
            modality.name: tuple(dict.fromkeys((*modality.aliases, modality.name)))
            for modality in spec.modalities
        }
        taken = {_normal(alias) for aliases in own.values() for alias in aliases}
        rest = {
            role: tuple(alias for alias in aliases if _normal(alias) not in taken)
            for role, aliases in ALIASES.items()
            if role not in own
        }
        self.table: dict[str, tuple[str, ...]] = {**own, **rest}
        self.required = frozenset(modality.name for modality in spec.modalities if not modality.optional)
        self._patterns = [
            (_pattern(alias), len(words(alias)), role, alias)
            for role, aliases in self.table.items()
            for alias in aliases
            if words(alias)
        ]

    def read(self, stem: str) -> Reading | None:
        """The reading of a name without its extension; None if it holds no word of the table."""
        found = _counting_words(stem)
        text = " ".join(word.group().lower() for word in found)
        best: tuple[tuple[int, int], Reading] | None = None
        for pattern, length, role, alias in self._patterns:
            hit = pattern.match(text)
            if hit is None or (best and (hit.end(1), length) <= best[0]):
                continue
            first, last = (text.count(" ", 0, place) for place in hit.span(1))
            before = stem[: found[first].start()].strip(_SEPARATORS)
            behind = stem[found[last].end() :].strip(_SEPARATORS)
            best = (hit.end(1), length), Reading(role, alias, before, behind)
        if best is None:
            return None
        # BIDS names the scan by its first entities; what follows them may differ by modality.
        bids = _BIDS.match(stem)
        return replace(best[1], before=bids.group()) if bids else best[1]


def words(text: str) -> tuple[str, ...]:
    """The runs of letters and digits in a text, in lower case."""
    return tuple(re.findall(_WORD, text.lower()))


def _normal(alias: str) -> str:
    """An alias as one text, so that two spellings of it are equal."""
    return " ... ".join(" ".join(words(part)) for part in alias.split("..."))


def _counting_words(stem: str) -> list[re.Match[str]]:
    """The words of a name, less those that are negated."""
    found = list(re.finditer(_WORD, stem))
    return [
        word
        for n, word in enumerate(found)
        if not (n and word.group().lower() in _AGENTS and found[n - 1].group().lower() in _NEGATIONS)
    ]


def _pattern(alias: str) -> re.Pattern[str]:
    """Matches a text of words where an alias stands in it; group 1 is its last occurrence."""
    parts = _normal(alias).split(" ... ")
    return re.compile(rf"(?:.* )?({' (?:.* )?'.join(parts)})(?: |$)")
