"""The DICOM objects of one result, each read back from disk before it counts."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom

from brainseg_runtime.dicom import seg, sr
from brainseg_runtime.dicom.seg import Origin, SegType, make_seg, to_bytes
from brainseg_runtime.errors import BrainsegError, ScanRefused
from brainseg_runtime.files import remove, write_atomically
from brainseg_runtime.outputs import ATTACHMENTS, Attachment, AttachmentKind
from brainseg_runtime.volume import Segmentation

__all__ = ["attachments_of"]

Contents = Mapping[str, Any]


def attachments_of(
    scan: str,
    headers: tuple[pydicom.Dataset, ...],
    kinds: Collection[AttachmentKind],
    segmentation: Segmentation,
) -> list[Attachment]:
    """The DICOM attachments that were asked for: SEG first, since the report refers to it.

    ``headers`` are those of the series on whose grid the segmentation lies.
    """
    made: list[Attachment] = []
    for kind, form in (("dicom-seg", "BINARY"), ("dicom-labelmap", "LABELMAP")):
        if kind in kinds:
            made.append(Attachment(kind, _seg_saver(segmentation, headers, form)))  # type: ignore[arg-type]
    if "dicom-sr" in kinds:
        refers_to: AttachmentKind = "dicom-seg" if "dicom-seg" in kinds else "dicom-labelmap"
        made.append(Attachment("dicom-sr", _report_saver(segmentation, headers, scan, refers_to)))
    return made


def _seg_saver(
    segmentation: Segmentation, headers: tuple[pydicom.Dataset, ...], form: SegType
) -> Callable[[Path, Contents], str]:
    def save(path: Path, contents: Contents) -> str:
        with _told_without_values():
            data = to_bytes(make_seg(segmentation, Origin(headers, contents), form))
        digest = write_atomically(path, data)
        _checked(path, lambda written: seg.require_equal(written, segmentation))
        return digest

    return save


def _report_saver(
    segmentation: Segmentation, headers: tuple[pydicom.Dataset, ...], scan: str, refers_to: AttachmentKind
) -> Callable[[Path, Contents], str]:
    def save(path: Path, contents: Contents) -> str:
        drawn = pydicom.dcmread(path.with_name(f"{scan}{ATTACHMENTS[refers_to]}"), stop_before_pixels=True)
        measured = sr.measure(segmentation)
        notes = [str(flag["words"]) for flag in contents.get("flags", ())]
        notes += [str(warning) for warning in contents.get("warnings", ())]
        with _told_without_values():
            data = to_bytes(sr.make_report(segmentation, Origin(headers, contents), drawn, measured, notes))
        digest = write_atomically(path, data)
        _checked(path, lambda written: sr.require_equal(written, measured))
        return digest

    return save


@contextmanager
def _told_without_values() -> Iterator[None]:
    """Let no error out whose words may hold what stands in a header."""
    try:
        yield
    except (BrainsegError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001
        raise ScanRefused(
            "E_DICOM_DAMAGED",
            f"the headers of the study do not allow a DICOM result ({type(error).__name__}).",
            "Correct the study, or ask for the mask alone with --output-type nifti.",
        ) from None


def _checked(path: Path, check: Callable[[bytes], None]) -> None:
    """Read back what was written, and leave nothing that does not say what was meant."""
    try:
        check(path.read_bytes())
    except BaseException:
        remove(path)
        raise
