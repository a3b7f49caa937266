"""What a run is given: NIfTI or DICOM, told apart by content, and the scans in it."""

import os
import zipfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from brainseg_runtime.errors import UsageRefused
from brainseg_runtime.extras import require
from brainseg_runtime.layouts import IMAGE
from brainseg_runtime.outputs import DICOM_KINDS, AttachmentKind
from brainseg_runtime.scans import find_scans, onto
from brainseg_runtime.spec import ModelSpec

if TYPE_CHECKING:
    from brainseg_runtime.batch import Findings

__all__ = ["InputType", "find", "kind_of", "require_dicom", "result_kinds"]

InputType = Literal["nifti", "dicom"]


def kind_of(inputs: Sequence[Path]) -> InputType:
    """Whether some inputs hold NIfTI or DICOM.

    A file is NIfTI by its name and DICOM by its mark at byte 128; a zip archive is taken for DICOM.

    Raises:
        UsageRefused: ``E_INPUT_MIXED`` if both are there.
    """
    kinds = {kind for path in inputs for file in _files(path) if (kind := _kind(file))}
    if len(kinds) > 1:
        raise UsageRefused(
            "E_INPUT_MIXED",
            "the input holds both NIfTI and DICOM files.",
            "Say which is meant with --input-type, or run them one after the other.",
        )
    # What holds neither is refused by the search for NIfTI, which says what was seen.
    return kinds.pop() if kinds else "nifti"


def find(
    inputs: Sequence[Path],
    spec: ModelSpec,
    kind: InputType,
    *,
    resample_to: str | None = None,
    register: bool = False,
    rules: Path | None = None,
) -> "Findings":
    """The scans in some inputs, each ready to be read on one grid.

    ``register``: series are moved rigidly onto that of ``resample_to``, else of the model's reference.

    Raises:
        ScanRefused: as ``scans.find_scans`` and ``dicom.study.find_studies``.
        UsageRefused: ``E_USAGE``, ``E_RULES``.
        EngineUnavailable: ``E_EXTRA_MISSING``.
    """
    if register:
        require("--register", ("SimpleITK",), "brainseg-runtime[register]")
        resample_to = resample_to or spec.reference
    if kind == "dicom":
        require_dicom()
        from brainseg_runtime.dicom.rules import load_rules
        from brainseg_runtime.dicom.study import find_studies

        return find_studies(inputs, spec, load_rules(rules), resample_to, register)
    if rules is not None:
        raise UsageRefused("E_USAGE", "--rules choose DICOM series, the input is NIfTI.", "Leave it out.")
    found = find_scans(inputs, spec)
    return found if resample_to is None else onto(found, resample_to, register)


def result_kinds(asked: str | None, kind: InputType) -> Collection[AttachmentKind]:
    """The DICOM attachments that a list such as ``dicom-seg,dicom-sr`` asks for.

    None stands for the default: SEG and report of a DICOM study, nothing beside the mask of NIfTI.

    Raises:
        UsageRefused: ``E_USAGE``.
    """
    if asked is None:
        return ("dicom-seg", "dicom-sr") if kind == "dicom" else ()
    names = [name.strip() for name in asked.split(",")]
    unknown = set(names) - {"nifti", *DICOM_KINDS}
    wanted = tuple(name for name in DICOM_KINDS if name in names)
    if unknown:
        raise UsageRefused(
            "E_USAGE",
            f"--output-type knows no {', '.join(sorted(unknown))}.",
            f"It is a list of nifti, {', '.join(DICOM_KINDS)}.",
        )
    if wanted and kind != "dicom":
        raise UsageRefused(
            "E_USAGE", "DICOM results refer to a DICOM study, the input is NIfTI.", "Leave out --output-type."
        )
    if wanted == ("dicom-sr",):
        raise UsageRefused(
            "E_USAGE", "a report refers to a SEG.", "Ask for dicom-seg or dicom-labelmap beside dicom-sr."
        )
    return wanted


def require_dicom() -> None:
    """Refuse early where DICOM cannot be read.

    Raises:
        EngineUnavailable: ``E_EXTRA_MISSING`` with the line that installs it.
    """
    require("DICOM", ("pydicom", "highdicom"), "brainseg-runtime[dicom]")


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    for place, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place) / name for name in names if not name.startswith("."))


def _kind(path: Path) -> InputType | None:
    if IMAGE.fullmatch(path.name):
        return "nifti"
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            head = file.read(132)
    except OSError:
        return None
    return "dicom" if head[128:] == b"DICM" or zipfile.is_zipfile(path) else None
