"""Masks that lie in a folder against the truth that lies in another one."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from brainseg_runtime.errors import ScanRefused
from brainseg_runtime.geometry import Geometry
from brainseg_runtime.layouts import IMAGE
from brainseg_runtime.names import Names
from brainseg_runtime.nifti import read_labels
from brainseg_runtime.resample import GRID_MM
from brainseg_runtime.scans import find_scans
from brainseg_runtime.spec import ModelSpec
from numpy.typing import NDArray

from brainseg_trainer.label_names import truth_table
from brainseg_trainer.scoring.measures import Measures, measure
from brainseg_trainer.task import label_table

__all__ = ["Answer", "ScanScore", "find_answers", "find_truths", "score_folder"]

Labels = NDArray[np.uint8]


@dataclass(frozen=True)
class Answer:
    """The results that one scan left in a folder."""

    scan: str
    mask: Path
    record: Path | None
    """Its JSON; None for a mask that another program wrote."""
    picture: Path | None
    names: Mapping[int, str]
    """Label value -> name, as the JSON has it; empty without one."""
    seconds: Mapping[str, float]
    """Stage -> seconds, as the JSON has it; empty without one."""


@dataclass(frozen=True)
class ScanScore:
    """How well one scan was segmented."""

    scan: str
    regions: Mapping[str, Measures]


def score_folder(
    answers: Sequence[Answer],
    truths: Mapping[str, Path],
    spec: ModelSpec,
    report: Callable[[int, int], None],
) -> list[ScanScore]:
    """Compare every answer with its truth, region by region of the spec.

    ``report`` is told how many of how many are done.

    Raises:
        ScanRefused: ``E_TRUTH_MISSING`` where an answer has no truth, ``E_GEOMETRY_MISMATCH`` where the
            two lie on different grids, ``E_LABELS``, and what ``read_labels`` raises.
    """
    bare = [answer.scan for answer in answers if answer.scan not in truths]
    if bare:
        raise ScanRefused(
            "E_TRUTH_MISSING",
            f"{len(bare)} of {len(answers)} masks have no truth, first {', '.join(bare[:5])}.",
            "Name the folder that holds their scans with truth, or label images called <scan>-seg.nii.gz.",
        )
    paired = [truths[answer.scan] for answer in answers]
    of_truths = truth_table(paired, _values(paired), spec)
    foreign = [answer.mask for answer in answers if not answer.names]
    of_foreign = label_table(_values(foreign), spec)
    scores = []
    for done, answer in enumerate(answers, start=1):
        truth, grid = read_labels(truths[answer.scan])
        labels, own_grid = read_labels(answer.mask)
        _require_one_grid(answer, own_grid, grid)
        table = _table(answer, spec) if answer.names else of_foreign
        scores.append(ScanScore(answer.scan, _measured(table[labels], of_truths[truth], grid, spec)))
        report(done, len(answers))
    return scores


def find_answers(folder: Path) -> list[Answer]:
    """The masks ``<scan>_seg.nii.gz`` of a folder and what stands beside them, sorted by scan.

    Raises:
        ScanRefused: ``E_INPUT_MISSING`` without such a folder or a mask in it, or for a damaged JSON.
    """
    masks = sorted(folder.glob("*_seg.nii.gz"))
    if not masks:
        raise ScanRefused(
            "E_INPUT_MISSING",
            f"{folder} holds no masks called <scan>_seg.nii.gz.",
            "Name the folder that brainseg-infer wrote into.",
        )
    return [_answer(mask) for mask in masks]


def find_truths(folder: Path, spec: ModelSpec) -> dict[str, Path]:
    """Scan -> label image: those of the scans under a folder, and label images that stand alone.

    A label image is one whose name says so, such as ``<scan>-seg.nii.gz``; in a folder called labels...,
    as in nnU-Net's layout, it is every image, and its whole name is the scan's.

    Raises:
        ScanRefused: ``E_INPUT_MISSING``; ``E_SCAN_DOUBLED`` where two label images bear one scan's name.
    """
    found = _scan_truths(folder, spec)
    names = Names(spec)
    alone: dict[str, Path] = {}
    for path in sorted(path for path in folder.rglob("*.nii*") if IMAGE.fullmatch(path.name)):
        scan = _scan_of_labels(path, names)
        if scan is None or scan in found:
            continue
        if scan in alone:
            raise ScanRefused(
                "E_SCAN_DOUBLED",
                f"{alone[scan]} and {path} both are the truth of scan {scan}.",
                "Leave one of them.",
            )
        alone[scan] = path
    return {**alone, **found}


def _scan_truths(folder: Path, spec: ModelSpec) -> dict[str, Path]:
    try:
        found = find_scans(folder, spec)
    except ScanRefused as error:
        if error.code == "E_NO_SCANS":
            return {}
        raise
    return {scan.id: scan.truth for scan in found.scans if scan.truth}


def _scan_of_labels(path: Path, names: Names) -> str | None:
    match = IMAGE.fullmatch(path.name)
    stem = match[1] if match else path.stem
    reading = names.read(stem)
    if reading and reading.role == "truth" and reading.before:
        return reading.before
    return stem if path.parent.name.lower().startswith("labels") else None


def _answer(mask: Path) -> Answer:
    stem = mask.name.removesuffix(".nii.gz")
    record, picture = mask.with_name(f"{stem}.json"), mask.with_name(f"{stem}.png")
    contents = _record(record) if record.is_file() else {}
    return Answer(
        scan=stem.removesuffix("_seg"),
        mask=mask,
        record=record if contents else None,
        picture=picture if picture.is_file() else None,
        names={int(value): str(name) for value, name in contents.get("labels", {}).items()},
        seconds={str(stage): float(s) for stage, s in contents.get("seconds", {}).items()},
    )


def _record(path: Path) -> dict[str, Any]:
    """What of a result's JSON is needed here."""
    try:
        contents = json.loads(path.read_bytes())
        if contents["options"]["label_scheme"] == "regions":
            raise ValueError("its mask holds a map per region")
        return {"labels": dict(contents["mask"]["labels"]), "seconds": dict(contents["seconds"])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ScanRefused(
            "E_INPUT_MISSING",
            f"{path} is no record of a mask of labels: {error}.",
            "Segment the scan again, with --label-scheme brats2023 or brats2021.",
        ) from error


def _table(answer: Answer, spec: ModelSpec) -> Labels:
    """(256,): a mask's value -> the spec's label of the same name."""
    values = {name: value for value, name in spec.label_names.items()}
    unknown = [name for name in answer.names.values() if name not in values]
    if unknown:
        raise ScanRefused(
            "E_LABELS",
            f"{answer.mask.name} holds the labels {', '.join(unknown)}, the task has {', '.join(values)}.",
            "Name the model's specification with --spec.",
        )
    table = np.zeros(256, np.uint8)
    for value, name in answer.names.items():
        table[value] = values[name]
    return table


def _values(paths: Iterable[Path]) -> set[int]:
    found: set[int] = set()
    for path in paths:
        found |= set(np.unique(read_labels(path)[0]).tolist())
    return found


def _require_one_grid(answer: Answer, own: Geometry, truth: Geometry) -> None:
    apart = own.distance(truth)
    if not apart <= GRID_MM:
        raise ScanRefused(
            "E_GEOMETRY_MISMATCH",
            f"{answer.mask.name} has {own.shape} voxels and lies {apart:.3g} mm from its truth, "
            f"which has {truth.shape}.",
            "Score masks on the grid that the truth was drawn on.",
        )


def _measured(answer: Labels, truth: Labels, grid: Geometry, spec: ModelSpec) -> dict[str, Measures]:
    return {
        region.name: measure(np.isin(answer, region.labels), np.isin(truth, region.labels), grid.spacing)
        for region in spec.regions
    }
