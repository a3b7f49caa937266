"""Which series a heap of DICOM files holds: headers only, grouped by their identifiers."""

import hashlib
import io
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID

from brainseg_runtime.dicom.archive import MAX_FILE_BYTES, Stored
from brainseg_runtime.errors import ScanRefused

__all__ = ["Instance", "Series", "Study", "group", "parse", "pseudonym"]

MR_CLASSES: Mapping[str, str] = {
    "1.2.840.10008.5.1.4.1.1.4": "MR",
    "1.2.840.10008.5.1.4.1.1.4.1": "Enhanced MR",
    "1.2.840.10008.5.1.4.1.1.4.4": "Legacy Converted Enhanced MR",
}
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_COPY_AGAIN = "Export the study again from its source."


@dataclass(frozen=True, eq=False)
class Instance:
    """One DICOM file: where it is, and its header without the pixels."""

    stored: Stored
    header: Dataset

    @property
    def uid(self) -> str:
        """SOPInstanceUID."""
        return str(self.header.SOPInstanceUID)

    @property
    def syntax(self) -> UID:
        """The transfer syntax that the pixels are stored in."""
        return UID(self.header.file_meta.TransferSyntaxUID)


@dataclass(frozen=True, eq=False)
class Series:
    """The instances with one SeriesInstanceUID."""

    uid: str
    instances: tuple[Instance, ...]
    """Sorted by SOPInstanceUID, so that file names and order of arrival mean nothing."""

    @cached_property
    def name(self) -> str:
        """What the series is called outside of DICOM."""
        return pseudonym("series", self.uid)

    @property
    def header(self) -> Dataset:
        """Of the first instance."""
        return self.instances[0].header

    @property
    def number(self) -> str:
        """SeriesNumber, ``?`` if there is none."""
        return str(_plain(self.header, "SeriesNumber") or "?")

    @property
    def modality(self) -> str:
        """Such as MR, CT, SEG."""
        return str(_plain(self.header, "Modality") or "?")

    @property
    def description(self) -> str:
        """SeriesDescription; free text, so it is for a terminal and for rules only."""
        return str(_plain(self.header, "SeriesDescription") or "")

    @property
    def is_mr(self) -> bool:
        """Whether all instances are of a class of MR images."""
        return all(str(_plain(instance.header, "SOPClassUID")) in MR_CLASSES for instance in self.instances)


@dataclass(frozen=True, eq=False)
class Study:
    """The series with one StudyInstanceUID."""

    uid: str
    series: tuple[Series, ...]
    refusal: ScanRefused | None = None
    """Why the study as a whole cannot be read."""

    @cached_property
    def name(self) -> str:
        """What the study is called outside of DICOM."""
        return pseudonym("study", self.uid)


@dataclass
class _Heap:
    """What was found so far, by study and series."""

    series: dict[str, dict[str, dict[str, Instance]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(dict))
    )
    refusals: dict[str, ScanRefused] = field(default_factory=dict)


def pseudonym(kind: str, uid: str) -> str:
    """A name that tells identifiers apart and says nothing else: the head of their SHA-256."""
    return f"{kind}-{hashlib.sha256(uid.encode()).hexdigest()[:16]}"


def group(files: Iterable[Stored]) -> tuple[tuple[Study, ...], tuple[tuple[str, str], ...]]:
    """The studies in some files, and (name, why) of every file that is no DICOM instance.

    A copy of an instance counts once; a study in which two instances of one UID differ is refused.

    Raises:
        ScanRefused: ``E_DICOM_DAMAGED``, ``E_TOO_BIG``, ``E_ZIP`` for a file that cannot be trusted.
    """
    heap, ignored = _Heap(), []
    for stored in files:
        data = stored.read()
        if data[128:132] != b"DICM":
            ignored.append((stored.name, "not a DICOM file"))
            continue
        header = parse(data, headers=True)
        missing = [
            key for key in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID") if not header.get(key)
        ]
        if missing:
            ignored.append((stored.name, f"has no {missing[0]}"))
            continue
        _put(heap, Instance(stored, header))
    studies = []
    for study, by_series in sorted(heap.series.items()):
        found = [
            Series(uid, tuple(instances[key] for key in sorted(instances)))
            for uid, instances in by_series.items()
        ]
        found.sort(key=lambda one: (_order(one.number), one.uid))
        refusal = heap.refusals.get(study) or _mixed_patients(study, found)
        studies.append(Study(study, tuple(found), refusal))
    return tuple(studies), tuple(ignored)


def parse(data: bytes, *, headers: bool = False) -> Dataset:
    """A DICOM file as a dataset, with its pixels or without.

    Raises:
        ScanRefused: ``E_DICOM_DAMAGED``, ``E_TOO_BIG``.
    """
    _check_deflated(data)
    try:
        dataset = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=headers)
        UID(dataset.file_meta.TransferSyntaxUID).is_compressed  # noqa: B018 - raises if it is none
        for key in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
            str(dataset.get(key, ""))
    except Exception as error:  # pydicom fails in many ways on damaged files
        raise ScanRefused(
            "E_DICOM_DAMAGED", f"a DICOM file cannot be read ({type(error).__name__}).", _COPY_AGAIN
        ) from error
    return dataset


def _check_deflated(data: bytes) -> None:
    """Bound what a deflated file inflates to, since pydicom inflates it whole whatever its size."""
    if _DEFLATED not in data[132:1024]:
        return
    start = 144 + int.from_bytes(data[140:144], "little")
    try:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        left, size = data[start:], 0
        while left and not inflater.eof:
            size += len(inflater.decompress(left, 1 << 20))
            left = inflater.unconsumed_tail
            if size > MAX_FILE_BYTES:
                raise ScanRefused(
                    "E_TOO_BIG", f"a DICOM file inflates to over {size} bytes.", "Export it uncompressed."
                )
    except zlib.error as error:
        raise ScanRefused(
            "E_DICOM_DAMAGED", f"a deflated DICOM file is damaged ({error}).", _COPY_AGAIN
        ) from error


def _put(heap: _Heap, instance: Instance) -> None:
    header = instance.header
    study = str(header.StudyInstanceUID)
    known = heap.series[study][str(header.SeriesInstanceUID)].setdefault(instance.uid, instance)
    if known is not instance and known.stored.read() != instance.stored.read():
        heap.refusals[study] = ScanRefused(
            "E_DICOM_DOUBLED",
            f"{pseudonym('study', study)} holds two different instances of one SOPInstanceUID.",
            "Leave the right one; two exports may lie in one folder.",
        )


def _mixed_patients(study: str, found: Sequence[Series]) -> ScanRefused | None:
    patients = {str(_plain(i.header, "PatientID") or "") for series in found for i in series.instances}
    if len(patients) < 2:
        return None
    return ScanRefused(
        "E_PATIENTS_MIXED",
        f"the instances of {pseudonym('study', study)} have {len(patients)} different patient identifiers.",
        "Give the study of one patient.",
    )


def _plain(header: Dataset, keyword: str) -> object:
    """A field of a header that may not even be decodable; None if it is absent, empty or damaged."""
    try:
        value: object = header.get(keyword)
    except Exception:  # noqa: BLE001 - a damaged field is as good as none
        return None
    return value


def _order(number: str) -> tuple[int, str]:
    return (int(number), "") if number.removeprefix("-").isdecimal() else (1 << 31, number)
