"""From the downloaded files, or the zips they come in, to a folder of scans with truth.

Nothing of an archive is unpacked under a name of its own. What is damaged, missing or foreign is named,
the rest imported; ``figshare.json``, written last, says what became of every file.
"""

import io
import json
import re
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import h5py
import numpy as np
from brainseg_runtime.dicom.archive import Stored, files_in
from brainseg_runtime.errors import ScanRefused, UsageRefused
from brainseg_runtime.files import write_atomically
from brainseg_runtime.geometry import Geometry
from brainseg_runtime.nifti import write_image, write_labels
from numpy.typing import NDArray

from brainseg_trainer.figshare.slices import KINDS, Slice, read_slice
from brainseg_trainer.figshare.stacks import Look, Stack, look_at, stacks
from brainseg_trainer.figshare.task import PIXEL_MM, SLICE_MM

__all__ = ["INDEX", "SLICES", "Import", "import_slices", "is_import", "read_folds"]

INDEX = "figshare.json"
SLICES = 3064
FOLDS = 5
SMALL = frozenset((*range(955, 958), *range(1070, 1077), *range(1203, 1208)))
"""The slices of 256 x 256."""
COUNTS = {1: (708, 82), 2: (1426, 89), 3: (930, 62)}
"""Kind -> slices and patients of the whole data set (Cheng 2015)."""
NOMINAL = (
    "Nominal: pixels of 0.49 mm at 512 x 512 and slices 7 mm apart are the paper's, not the files'. Axis K "
    "runs across the slices in the order of their numbers, whatever their plane; left, front and top are "
    "not known."
)

_NUMBERED = re.compile(r"([1-9]\d{0,3})\.mat", re.IGNORECASE)
_FOLDS = re.compile(r"cvind(5fold)?\.mat", re.IGNORECASE)
_UNNEEDED = re.compile(r"readme.*|label\.mat", re.IGNORECASE)


@dataclass
class Import:
    """What became of the files."""

    stacks: list[Stack] = field(default_factory=list)
    refused: dict[str, ScanRefused] = field(default_factory=dict)
    """File -> why it was not imported."""
    foreign: list[str] = field(default_factory=list)
    """Files that belong to something else."""
    missing: list[int] = field(default_factory=list)
    """Numbers of slices that were not found."""
    remarks: list[str] = field(default_factory=list)
    """What is otherwise than published."""

    @property
    def is_whole(self) -> bool:
        """Whether every slice of the data set was imported."""
        return not self.refused and not self.missing


def import_slices(
    source: Path, out: Path, planes: Mapping[int, str], report: Callable[[str, int, int], None]
) -> Import:
    """Write the slices under ``source`` as scans: ``<patient>/<stack>_t1c.nii.gz`` and ``..._seg.nii.gz``.

    ``planes`` is what the user knows of slices' planes: number -> plane. ``report`` is told the stage and
    how many of how many are done.

    Raises:
        ScanRefused: ``E_NO_SCANS`` without a single good slice, ``E_FOLDS`` where the folds do not fit the
            slices or part a patient, ``E_INPUT_MISSING``, ``E_ZIP``.
        UsageRefused: ``E_USAGE`` where ``out`` holds an import.
        OutputUnwritable: ``E_OUTPUT``.
    """
    if (out / INDEX).exists():
        raise UsageRefused("E_USAGE", f"{out} already holds an import.", "Choose another folder.")
    result = Import()
    with ExitStack() as unpacked:
        numbered, folds = _sorted_out(_files(source, unpacked, result), result)
        looks = _look_at_all(numbered, result, report)
        _check(looks, folds, result)
        result.stacks = stacks(looks, planes)
        for done, stack in enumerate(result.stacks, start=1):
            _write(stack, [read_slice(numbered[n].read(), n) for n in stack.numbers], out)
            report("writing stacks", done, len(result.stacks))
    index = _index(result, {look.number: look for look in looks}, folds)
    write_atomically(out / INDEX, (json.dumps(index, indent=1) + "\n").encode())
    return result


def is_import(folder: Path) -> bool:
    """Whether a folder is what ``import_slices`` left."""
    return (folder / INDEX).is_file()


def read_folds(content: bytes) -> tuple[int, ...]:
    """The fold, 1 to 5, of every slice in the order of their numbers, from the bytes of ``cvind.mat``.

    Raises:
        ScanRefused: ``E_FOLDS``.
    """
    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            values = file["cvind"][()].ravel()
        if values.size != SLICES or not np.isin(values, np.arange(1, FOLDS + 1)).all():
            raise ValueError(f"{values.size} values from {values.min()} to {values.max()}")
    except Exception as error:  # h5py fails in many ways on damaged files
        raise ScanRefused(
            "E_FOLDS",
            f"cvind.mat does not hold a fold of 1 to {FOLDS} for each of {SLICES} slices: {error}.",
            "Download it again, or take it out of the folder.",
        ) from error
    return tuple(int(value) for value in values)


def _files(source: Path, unpacked: ExitStack, result: Import) -> Iterator[Stored]:
    """Every file under a folder or in a zip, and those in zips therein; damaged zips are refused by name."""
    for stored in files_in(source):
        if not _is_zip(stored):
            yield stored
            continue
        try:
            yield from _members(stored, unpacked)
        except ScanRefused as error:
            result.refused[stored.name] = error


def _members(archive: Stored, unpacked: ExitStack) -> list[Stored]:
    """The files of a zip, and those of the zips that it holds, as figshare packs a whole article."""
    path = archive.path
    if archive.archive is not None:
        path = Path(unpacked.enter_context(tempfile.TemporaryDirectory(prefix="brainseg-"))) / "inner.zip"
        path.write_bytes(archive.read())
    if not zipfile.is_zipfile(path):
        raise ScanRefused("E_ZIP", f"{archive.name} is no zip archive.", "Download it again.")
    members = list(files_in(path))
    deep = archive.archive is not None
    nested = [_members(member, unpacked) if _is_zip(member) and not deep else [member] for member in members]
    return [member for group in nested for member in group]


def _is_zip(stored: Stored) -> bool:
    return stored.name.lower().endswith(".zip")


def _sorted_out(files: Iterator[Stored], result: Import) -> tuple[dict[int, Stored], tuple[int, ...] | None]:
    """The slices by number, and the folds; the rest is noted as foreign."""
    numbered: dict[int, Stored] = {}
    folds: tuple[int, ...] | None = None
    for stored in files:
        name = PurePosixPath(stored.name).name
        match = _NUMBERED.fullmatch(name)
        if match and int(match[1]) <= SLICES:
            if int(match[1]) in numbered:
                result.refused[stored.name] = _doubled(stored, numbered[int(match[1])])
            else:
                numbered[int(match[1])] = stored
        elif _FOLDS.fullmatch(name):
            folds = read_folds(stored.read())
        elif not _UNNEEDED.fullmatch(name):
            result.foreign.append(stored.name)
    result.missing = sorted(set(range(1, SLICES + 1)) - set(numbered))
    return numbered, folds


def _look_at_all(
    numbered: Mapping[int, Stored], result: Import, report: Callable[[str, int, int], None]
) -> list[Look]:
    looks = []
    for done, (number, stored) in enumerate(sorted(numbered.items()), start=1):
        try:
            looks.append(look_at(read_slice(stored.read(), number)))
        except ScanRefused as error:
            result.refused[stored.name] = error
        report("reading slices", done, len(numbered))
    if not looks:
        first = next(iter(result.refused.values()), "no file is called <number>.mat")
        raise ScanRefused(
            "E_NO_SCANS", f"no slice of figshare 1512427 was found: {first}.", "Name the downloaded folder."
        )
    return looks


def _check(looks: Sequence[Look], folds: tuple[int, ...] | None, result: Import) -> None:
    """Refuse folds that part a patient; remark on what is otherwise than published."""
    if folds is None:
        result.remarks.append("There is no cvind.mat, so the scans have no folds.")
    else:
        _require_whole_patients(looks, folds)
    kinds: dict[str, set[int]] = defaultdict(set)
    for look in looks:
        kinds[look.patient].add(look.kind)
    result.remarks += [
        f"Patient {patient} has slices of several types: {', '.join(KINDS[kind] for kind in sorted(found))}."
        for patient, found in kinds.items()
        if len(found) > 1
    ]
    odd = sorted(look.number for look in looks if (look.side == 256) != (look.number in SMALL))
    if odd:
        result.remarks.append(f"Slices of a size other than published: {odd}.")
    if result.is_whole:
        result.remarks += _uncommon_counts(looks)


def _require_whole_patients(looks: Sequence[Look], folds: Sequence[int]) -> None:
    found: dict[str, dict[int, int]] = defaultdict(dict)
    for look in looks:
        found[look.patient].setdefault(folds[look.number - 1], look.number)
    parted = {patient: where for patient, where in found.items() if len(where) > 1}
    if parted:
        patient, where = next(iter(parted.items()))
        places = ", ".join(f"slice {number} in fold {fold}" for fold, number in where.items())
        raise ScanRefused(
            "E_FOLDS",
            f"{len(parted)} patients lie in more than one fold, first {patient}: {places}.",
            "Take cvind.mat out of the folder to import without folds.",
        )


def _uncommon_counts(looks: Sequence[Look]) -> list[str]:
    remarks = []
    for kind, (slices, patients) in COUNTS.items():
        mine = [look for look in looks if look.kind == kind]
        own = len({look.patient for look in mine})
        if (len(mine), own) != (slices, patients):
            remarks.append(
                f"{KINDS[kind]}: {len(mine)} slices of {own} patients, published are {slices} of {patients}."
            )
    return remarks


def _write(stack: Stack, slices: Sequence[Slice], out: Path) -> None:
    """A stack as a volume: I along the columns, J down the rows, K across the slices."""
    images: NDArray[np.int16] = np.stack([found.image.T for found in slices], axis=-1)
    masks = np.stack([found.mask.T for found in slices], axis=-1).astype(np.uint8)
    geometry = _geometry(stack)
    base = out / stack.folder / stack.name
    write_labels(base.with_name(f"{base.name}_seg.nii.gz"), masks, geometry)
    write_image(base.with_name(f"{base.name}_t1c.nii.gz"), images, geometry)


def _geometry(stack: Stack) -> Geometry:
    # Slices of 256 x 256 are taken to show as much of the head.
    pixel = PIXEL_MM * 512 / stack.side
    return Geometry((stack.side, stack.side, len(stack.numbers)), np.diag([-pixel, -pixel, SLICE_MM, 1.0]))


def _index(result: Import, looks: Mapping[int, Look], folds: Sequence[int] | None) -> dict[str, Any]:
    return {
        "format": 1,
        "source": "figshare 1512427, Jun Cheng 2017, doi 10.6084/m9.figshare.1512427, CC BY 4.0",
        "geometry": NOMINAL,
        "scans": {
            stack.name: {
                "patient": stack.patient,
                "type": KINDS[stack.kind],
                "plane": stack.plane,
                "fold": folds[stack.numbers[0] - 1] if folds else None,
                "slices": list(stack.numbers),
                "sha256": [looks[number].sha256 for number in stack.numbers],
            }
            for stack in result.stacks
        },
        "refused": {name: str(error) for name, error in result.refused.items()},
        "missing": result.missing,
        "foreign": result.foreign,
        "remarks": result.remarks,
    }


def _doubled(stored: Stored, first: Stored) -> ScanRefused:
    return ScanRefused(
        "E_SCAN_DOUBLED",
        f"{stored.name} and {first.name} bear one number; the latter is taken.",
        "Leave one of them.",
    )
