"""Which series a heap of DICOM files holds: headers only, grouped by their identifiers."""

import hashlib
import io
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.filereader import read_partial
from pydicom.uid import UID

from brainseg_runtime.dicom.archive import MAX_FILE_BYTES, Stored
from brainseg_runtime.errors import ScanRefused

__all__ = ["Heap", "Instance", "Series", "Study", "Unread", "group", "parse", "pseudonym"]

MR_CLASSES: Mapping[str, str] = {
    "1.2.840.10008.5.1.4.1.1.4": "MR",
    "1.2.840.10008.5.1.4.1.1.4.1": "Enhanced MR",
    "1.2.840.10008.5.1.4.1.1.4.4": "Legacy Converted Enhanced MR",
}
_STUDY = 0x0020000D
"""The tag of the StudyInstanceUID."""
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


@dataclass(frozen=True, eq=False)
class Unread:
    """A file that cannot be trusted."""

    number: int
    """Of the file among all, from 1: a hash of its name would tell who knows the patients which is meant."""
    stored: Stored
    refusal: ScanRefused
    study: str | None = None
    """The StudyInstanceUID that it belongs to by its header, or else by its folder; None if neither tells."""

    @property
    def name(self) -> str:
        """What is refused with it, as it is called outside of DICOM: its study, else the file by number."""
        return f"file-{self.number:05}" if self.study is None else pseudonym("study", self.study)


@dataclass(frozen=True, eq=False)
class Heap:
    """What some files hold."""

    studies: tuple[Study, ...]
    ignored: tuple[tuple[str, str], ...]
    """(Name, why) of every file that is no DICOM instance."""
    unread: tuple[Unread, ...]


@dataclass
class _Found:
    """What was found so far, by study and series."""

    series: dict[str, dict[str, dict[str, Instance]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(dict))
    )
    refusals: dict[str, ScanRefused] = field(default_factory=dict)
    folders: dict[Path, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Which studies have instances in a folder."""


def pseudonym(kind: str, uid: str) -> str:
    """A name that tells identifiers apart and says nothing else: the head of their SHA-256."""
    return f"{kind}-{hashlib.sha256(uid.encode()).hexdigest()[:16]}"


def group(files: Iterable[Stored]) -> Heap:
    """The studies in some files.

    A copy of an instance counts once; a study in which two instances of one UID differ is refused, and so is
    one that a file belongs to which cannot be trusted.

    Raises:
        ScanRefused: as what ``files`` comes from.
    """
    found, ignored, unread = _Found(), [], []
    for number, stored in enumerate(files, 1):
        data = b""
        try:
            data = stored.read()
            if why := _put(found, stored, data):
                ignored.append((stored.name, why))
        except ScanRefused as refusal:
            # What inflates without end is not inflated again for its header.
            study = None if refusal.code == "E_TOO_BIG" else _study_of(data)
            unread.append(Unread(number, stored, refusal, study))
    for one in unread:
        if one.study is not None:
            found.folders[one.stored.folder].add(one.study)
    unread = [replace(one, study=one.study or _only(found.folders[one.stored.folder])) for one in unread]
    for one in unread:
        if one.study is not None:
            why = f"{one.name}: {one.refusal.received}"
            refused = ScanRefused(one.refusal.code, why, one.refusal.remedy)
            found.refusals.setdefault(one.study, refused)
    studies = tuple(_study(found, uid) for uid in sorted(found.series.keys() | found.refusals.keys()))
    return Heap(studies, tuple(ignored), tuple(unread))


def parse(data: bytes, *, headers: bool = False) -> Dataset:
    """A DICOM file as a dataset, with its pixels or without.

    Raises:
        ScanRefused: ``E_DICOM_DAMAGED``, ``E_TOO_BIG``.
    """
    try:
        dataset = pydicom.dcmread(_Measured(data), stop_before_pixels=headers)
        UID(dataset.file_meta.TransferSyntaxUID).is_compressed  # noqa: B018 - raises if it is none
        for key in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
            str(dataset.get(key, ""))
    except ScanRefused:
        raise
    except Exception as error:  # pydicom fails in many ways on damaged files
        raise ScanRefused(
            "E_DICOM_DAMAGED", f"a DICOM file cannot be read ({type(error).__name__}).", _COPY_AGAIN
        ) from error
    return dataset


class _Measured(io.BytesIO):
    """A DICOM file that is measured before pydicom inflates it, which it does at once and whatever the size.

    It inflates what one read takes to the end of the file, and nothing else is read so. To look for the place
    beforehand would be to find another one than pydicom does in a file that is made to deceive.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file; what is taken to the end must inflate to something bounded."""
        data = super().read(size)
        if size is None or size < 0:
            _require_bounded(data)
        return data


def _require_bounded(deflated: bytes) -> None:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    left, size = deflated, 0
    while left and not inflater.eof:
        size += len(inflater.decompress(left, 1 << 20))
        left = inflater.unconsumed_tail
        if size > MAX_FILE_BYTES:
            raise ScanRefused(
                "E_TOO_BIG", f"a DICOM file inflates to over {size} bytes.", "Export it uncompressed."
            )


def _put(found: _Found, stored: Stored, data: bytes) -> str:
    """Put an instance to its series, or say why a file is none."""
    if data[128:132] != b"DICM":
        return "not a DICOM file"
    header = parse(data, headers=True)
    for key in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        if not header.get(key):
            return f"has no {key}"
    instance, study = Instance(stored, header), str(header.StudyInstanceUID)
    found.folders[stored.folder].add(study)
    known = found.series[study][str(header.SeriesInstanceUID)].setdefault(instance.uid, instance)
    if known is not instance and known.stored.read() != data:
        found.refusals[study] = ScanRefused(
            "E_DICOM_DOUBLED",
            f"{pseudonym('study', study)} holds two different instances of one SOPInstanceUID.",
            "Leave the right one; two exports may lie in one folder.",
        )
    return ""


def _study(found: _Found, uid: str) -> Study:
    series = [
        Series(name, tuple(instances[key] for key in sorted(instances)))
        for name, instances in found.series.get(uid, {}).items()
    ]
    series.sort(key=lambda one: (_order(one.number), one.uid))
    return Study(uid, tuple(series), found.refusals.get(uid) or _mixed_patients(uid, series))


def _study_of(data: bytes) -> str | None:
    """The StudyInstanceUID of a file that cannot be read to its end, if what stands before it can be."""
    try:
        header = read_partial(_Measured(data), stop_when=lambda tag, _vr, _length: tag > _STUDY)
        return str(header.get("StudyInstanceUID") or "") or None
    except Exception:  # noqa: BLE001 - as in parse
        return None


def _only(studies: Collection[str]) -> str | None:
    return next(iter(studies)) if len(studies) == 1 else None


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
