"""From the series of a study to a scan: one series a modality, on one grid, or a refusal with reasons."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from brainseg_runtime.dicom.archive import files_in
from brainseg_runtime.dicom.pixels import load, require_decoder, sha256_of
from brainseg_runtime.dicom.results import attachments_of
from brainseg_runtime.dicom.rules import Facts, Reading, Rules, facts_of, read_series
from brainseg_runtime.dicom.series import Series, Study, Unread, group
from brainseg_runtime.dicom.stack import Plan, fill, plan
from brainseg_runtime.errors import ScanRefused, UsageRefused
from brainseg_runtime.geometry import Geometry
from brainseg_runtime.outputs import Attachment, AttachmentKind
from brainseg_runtime.resample import GRID_MM, bring, record_of
from brainseg_runtime.spec import ModelSpec
from brainseg_runtime.volume import Outline, Segmentation, Source, Volume

__all__ = ["Chosen", "DicomScan", "FoundStudies", "Judged", "explain", "find_studies", "judge"]


READING = 16
"""Bytes a voxel of the largest series that lie beside the volume while it is read: files as they are, parsed,
and plain pixels, of one series and of the one before. From the peak that docs/dicom.md tells."""


@dataclass(frozen=True, eq=False)
class Judged:
    """What a series was taken for."""

    series: Series
    facts: Facts | None
    reading: Reading
    plan: Plan | None
    """The grid of a candidate, if it is one."""
    refusal: ScanRefused | None
    """Why a candidate cannot be used."""


@dataclass(frozen=True, eq=False)
class Chosen:
    """The series that a modality is read from."""

    modality: str
    series: Series
    plan: Plan
    why: str


@dataclass(frozen=True, eq=False)
class DicomScan:
    """A study as a scan: one series per modality of the model."""

    id: str
    """A pseudonym of the StudyInstanceUID."""
    chosen: tuple[Chosen, ...]
    """In the spec's modality order; an optional modality may have none."""
    reference: str
    """The modality on whose grid the others are read."""
    resample: bool
    """Whether series on other grids are brought onto the reference's."""
    rules: Mapping[str, str]
    """Name and SHA-256 of the rules that chose."""
    modalities: tuple[str, ...]
    """The model's, in order."""
    register: bool = False
    """Whether series are moved onto the reference's first, rigidly."""

    @property
    def grid(self) -> Chosen:
        """The series that gives the grid."""
        return next(one for one in self.chosen if one.modality == self.reference)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that are read, or the archive that holds them."""
        found = {instance.stored.path for one in self.chosen for instance in one.series.instances}
        return tuple(sorted(found))

    def identity(self) -> dict[str, Any]:
        """What a record of this scan must say, so that it speaks of the same bytes read the same way."""
        sources = [vars(Source(c.modality, c.series.name, sha256_of(c.series))) for c in self.chosen]
        way = {"resample": self.resample, "register": self.register}
        return {"inputs": sources, "reference": self.reference, **way}

    def attachments(self, kinds: Collection[AttachmentKind], segmentation: Segmentation) -> list[Attachment]:
        """SEG and report, as far as they are asked for."""
        headers = tuple(instance.header for instance in self.grid.series.instances)
        return attachments_of(self.id, headers, kinds, segmentation)

    def outline(self) -> Outline:
        """Its size, from the headers that chose its series."""
        largest = max(prod(one.plan.geometry.shape) for one in self.chosen)
        return Outline(self.grid.plan.geometry, READING * largest)

    def read(self) -> Volume:
        """Read every modality, (I, J, K, C) in Fortran order, on the reference series' grid.

        Raises:
            ScanRefused: as ``pixels.load`` and ``stack.fill``; ``E_GEOMETRY_MISMATCH``.
        """
        grid = self.grid.plan.geometry
        data = np.zeros((*grid.shape, len(self.modalities)), np.float32, order="F")
        sources, moved = [], []
        standing = data[..., self.modalities.index(self.reference)]
        # What the others are registered to comes first.
        for one in sorted(self.chosen, key=lambda one: one.modality != self.reference):
            c = self.modalities.index(one.modality)
            pixels = load(one.series)
            sources.append(Source(one.modality, one.series.name, pixels.sha256))
            decode = partial(fill, series=one.series, way=one.plan, datasets=pixels.datasets)
            onto = standing if self.register and one is not self.grid else None
            moved.append(bring(decode, one.plan.geometry, grid, data[..., c], one.modality, onto))
        sources.sort(key=lambda source: self.modalities.index(source.modality))
        chosen = {one.modality for one in self.chosen}
        absent = tuple(modality for modality in self.modalities if modality not in chosen)
        record = {**self._record(), **record_of(moved)}
        return Volume(data, grid, self.id, tuple(sources), record, absent)

    def _record(self) -> dict[str, Any]:
        series = [
            {"modality": c.modality, "series": c.series.name, "number": c.series.number, "why": c.why}
            for c in self.chosen
        ]
        return {
            "reference": self.reference,
            "resample": self.resample,
            "register": self.register,
            "dicom": {"rules": dict(self.rules), "series": series},
        }


@dataclass(frozen=True)
class FoundStudies:
    """The studies under some inputs."""

    scans: tuple[DicomScan, ...]
    refused: Mapping[str, ScanRefused]
    """Those that cannot be read, and files that cannot and of which no study is known."""


def find_studies(
    inputs: Sequence[Path],
    spec: ModelSpec,
    rules: Rules,
    resample_to: str | None = None,
    register: bool = False,
) -> FoundStudies:
    """Find the studies in folders and zip archives of DICOM files, and choose a series per modality.

    Raises:
        ScanRefused: ``E_NOT_DICOM`` if there is no instance at all, and as ``archive.files_in``.
        UsageRefused: ``E_RULES`` if the rules know no such modality.
    """
    _require_known(spec, rules, resample_to)
    heap = group(stored for path in inputs for stored in files_in(path))
    if not heap.studies and not heap.unread:
        raise ScanRefused("E_NOT_DICOM", "no DICOM instance is under the input.", "Give a study.")
    scans, refused = [], {one.name: _stray(one) for one in heap.unread if one.study is None}
    for study in heap.studies:
        try:
            scans.append(_scan(study, spec, rules, resample_to, register))
        except ScanRefused as error:
            refused[study.name] = error
    return FoundStudies(tuple(sorted(scans, key=lambda scan: scan.id)), dict(sorted(refused.items())))


def judge(study: Study, rules: Rules) -> tuple[Judged, ...]:
    """What each series of a study was taken for, and why."""
    return tuple(_judge(series, rules) for series in study.series)


def explain(inputs: Sequence[Path], rules: Rules, spec: ModelSpec | None = None) -> str:
    """Every series under some inputs, what it was taken for and why, and what becomes of each study.

    It shows descriptions as they stand in the files, so it is for the terminal of who asked.
    """
    heap = group(stored for path in inputs for stored in files_in(path))
    lines = [f"Rules: {rules.name} ({rules.sha256[:12]})"]
    for study in heap.studies:
        judged = judge(study, rules)
        lines += ["", f"{study.name}: {len(judged)} series"]
        for one in judged:
            lines += _explained(one)
        if spec is not None:
            lines.append(f"  => {_fate(study, spec, rules)}")
    if heap.unread:
        told = (f"  {one.stored.name}: {one.name} is refused for it, {one.refusal}" for one in heap.unread)
        lines += ["", "Files that cannot be read:", *told]
    if heap.ignored:
        lines += ["", "Not DICOM instances:", *(f"  {name}: {why}" for name, why in heap.ignored)]
    return "\n".join(lines)


def _stray(one: Unread) -> ScanRefused:
    """The refusal of a file alone, since nothing tells whose it is."""
    received = f"{one.refusal.received} What study it belongs to is not known: one of the others may lack it."
    remedy = f"'brainseg explain' shows which file it is. {one.refusal.remedy}"
    return ScanRefused(one.refusal.code, received, remedy)


def _explained(one: Judged) -> list[str]:
    taken = one.reading.modality or one.reading.verdict
    images = len(one.series.instances)
    lines = [
        f"  series {one.series.number} {one.series.name} [{one.series.modality}, {images} files] "
        f"{one.series.description!r}",
        f"    {taken}: {one.reading.why}",
    ]
    if one.plan is not None:
        lines.append(f"    grid: {_in_words(one.plan.geometry)}")
    if one.refusal is not None:
        lines.append(f"    cannot be used: {one.refusal}")
    return lines


def _fate(study: Study, spec: ModelSpec, rules: Rules) -> str:
    try:
        scan = _scan(study, spec, rules)
    except ScanRefused as error:
        return f"refused: {error}"
    return "read: " + ", ".join(f"{one.modality} from series {one.series.number}" for one in scan.chosen)


def _judge(series: Series, rules: Rules) -> Judged:
    if not series.is_mr:
        return Judged(series, None, Reading("nothing", "", f"it is {series.modality}, not MR"), None, None)
    try:
        facts = facts_of(series)
    except Exception as error:  # noqa: BLE001 - a header can be damaged in any of its fields
        why = f"its header is damaged ({type(error).__name__})"
        return Judged(series, None, Reading("nothing", "", why), None, None)
    reading = read_series(facts, rules)
    if reading.verdict != "candidate":
        return Judged(series, facts, reading, None, None)
    try:
        require_decoder(series)
        return Judged(series, facts, reading, plan(series), None)
    except ScanRefused as refusal:
        return Judged(series, facts, reading, None, refusal)


def _scan(
    study: Study, spec: ModelSpec, rules: Rules, resample_to: str | None = None, register: bool = False
) -> DicomScan:
    if study.refusal:
        raise study.refusal
    judged = judge(study, rules)
    _require_mr(study, judged)
    spoken_of = {one.reading.modality for one in judged}
    unclear = any(one.reading.verdict == "contradictory" for one in judged)
    # What a study does not have at all can be done without; what it has and cannot be used is refused.
    chosen = tuple(
        _choose(study, modality.name, judged, rules)
        for modality in spec.modalities
        if not modality.optional or modality.name in spoken_of or unclear
    )
    reference = resample_to or spec.reference
    if reference not in {one.modality for one in chosen}:
        raise _missing(study, reference, [], judged)
    scan = DicomScan(
        study.name,
        chosen,
        reference,
        resample_to is not None,
        {"name": rules.name, "sha256": rules.sha256},
        tuple(modality.name for modality in spec.modalities),
        register,
    )
    if not register:
        _require_one_frame(scan)
    if not scan.resample:
        _require_one_grid(scan)
    return scan


def _choose(study: Study, modality: str, judged: Sequence[Judged], rules: Rules) -> Chosen:
    candidates = [one for one in judged if one.reading.modality == modality]
    sound = [one for one in candidates if one.plan is not None and one.facts is not None]
    if not sound:
        raise _missing(study, modality, candidates, judged)
    best = min(_preference(one, rules) for one in sound)
    winners = [one for one in sound if _preference(one, rules) == best]
    if len(winners) > 1:
        names = ", ".join(f"{one.series.number} ({one.series.name})" for one in winners)
        raise ScanRefused(
            "E_SERIES_AMBIGUOUS",
            f"{study.name}: the series {names} could all be {modality}, and no rule prefers one.",
            "Leave one of them out, or add a preference to the rules (--rules).",
        )
    (winner,) = winners
    assert winner.plan is not None
    why = winner.reading.why
    if len(candidates) > 1:
        why += f"; preferred among {len(candidates)} by {', '.join(rules.prefer)}"
    return Chosen(modality, winner.series, winner.plan, why)


def _preference(one: Judged, rules: Rules) -> tuple[float, ...]:
    assert one.plan is not None
    assert one.facts is not None
    keys = {
        "3d": 0.0 if one.facts.is_3d else 1.0,
        "thin": round(one.plan.geometry.spacing[2], 1),
        "slices": -float(one.facts.slices),
    }
    return tuple(keys[name] for name in rules.prefer)


def _require_known(spec: ModelSpec, rules: Rules, resample_to: str | None) -> None:
    names = [modality.name for modality in spec.modalities]
    unknown = [name for name in names if name not in rules.modalities]
    if unknown:
        raise UsageRefused(
            "E_RULES",
            f"the rules {rules.name} do not speak of {', '.join(unknown)}, which the model needs.",
            "Give rules that do (--rules).",
        )
    if resample_to is not None and resample_to not in names:
        raise UsageRefused(
            "E_USAGE", f"--resample-to {resample_to} is none of {', '.join(names)}.", "Name a modality."
        )


def _require_mr(study: Study, judged: Sequence[Judged]) -> None:
    if not any(one.series.is_mr for one in judged):
        kinds = sorted({one.series.modality for one in judged})
        raise ScanRefused(
            "E_NOT_MR", f"{study.name} holds no MR series but {', '.join(kinds)}.", "Give an MRI."
        )


def _missing(
    study: Study, modality: str, candidates: Sequence[Judged], judged: Sequence[Judged]
) -> ScanRefused:
    """The refusal that says most of why no series can be a modality."""
    if candidates and candidates[0].refusal is not None:
        refusal = candidates[0].refusal
        return ScanRefused(refusal.code, f"{study.name}, {modality}: {refusal.received}", refusal.remedy)
    contradictory = [one for one in judged if one.reading.verdict == "contradictory"]
    told = "; ".join(
        f"series {one.series.number} is {one.reading.modality or one.reading.verdict}: {one.reading.why}"
        for one in judged
        if one.series.is_mr
    )
    return ScanRefused(
        "E_SERIES_CONTRADICTORY" if contradictory else "E_MODALITY_MISSING",
        f"{study.name} has no series that is {modality} by physics and description. {told}.",
        "Look at it with 'brainseg explain'; rules of your own are given with --rules.",
    )


def _require_one_frame(scan: DicomScan) -> None:
    if len({one.plan.origin for one in scan.chosen}) > 1:
        origins: dict[str, list[str]] = {one.plan.origin: [] for one in scan.chosen}
        for one in scan.chosen:
            origins[one.plan.origin].append(one.modality)
        groups = " and ".join("+".join(names) for names in origins.values())
        raise ScanRefused(
            "E_FRAME_OF_REFERENCE",
            f"{scan.id}: {groups} were measured in different frames of reference, so that the patient may "
            "have moved between them.",
            "Have them moved onto one of them: --register.",
        )


def _require_one_grid(scan: DicomScan) -> None:
    grid = scan.grid.plan.geometry
    apart = [
        f"{one.modality} ({_in_words(one.plan.geometry)})"
        for one in scan.chosen
        if not one.plan.geometry.distance(grid) <= GRID_MM
    ]
    if apart:
        raise ScanRefused(
            "E_GEOMETRY_MISMATCH",
            f"{scan.id}: {', '.join(apart)} lie on other grids than {scan.reference} ({_in_words(grid)}).",
            f"Resample them onto one of them: --resample-to {scan.reference}.",
        )


def _in_words(grid: Geometry) -> str:
    shape = "x".join(str(n) for n in grid.shape)
    spacing = "x".join(f"{mm:.4g}" for mm in grid.spacing)
    return f"{shape} voxels of {spacing} mm, {grid.orientation}"
