"""Synthetic DICOM series of an analytic phantom: what every voxel must be is known from where it lies."""

import hashlib
from collections.abc import Callable, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

CLASSIC = "1.2.840.10008.5.1.4.1.1.4"
ENHANCED = "1.2.840.10008.5.1.4.1.1.4.1"

SPHERES = (((30, 10, 20), 12, 400), ((-25, 35, -5), 9, 250), ((5, -30, 15), 7, 600))
"""Centre (mm, LPS), radius (mm), intensity: asymmetric on every axis."""


def truth(world: NDArray[np.float64], gain: float = 1.0) -> NDArray[np.float64]:
    """The phantom at positions (..., 3) in mm, LPS: a gradient and three soft spheres."""
    value = 500 + world @ np.array([0.9, 0.5, 0.3])
    for centre, radius, intensity in SPHERES:
        distance = np.linalg.norm(world - np.array(centre), axis=-1)
        value = value + intensity / (1 + np.exp((distance - radius) / 2))
    return gain * value


@dataclass(frozen=True)
class Grid:
    """A stack of slices; the default is double oblique and anisotropic."""

    rows: int = 48
    columns: int = 64
    slices: int = 16
    row_mm: float = 1.25
    column_mm: float = 1.0
    slice_mm: float = 3.0
    degrees: tuple[float, float, float] = (17.0, -11.0, 8.0)
    centre: tuple[float, float, float] = (3.0, -4.0, 7.0)
    start: NDArray[np.float64] | None = None
    """Axes before the rotation, (3, 3): rows are the directions of a row, a column, the stack."""

    @cached_property
    def axes(self) -> NDArray[np.float64]:
        """Directions along a row, along a column, and of the stack: (3, 3), LPS."""
        turn = np.eye(3)
        for axis, degree in enumerate(self.degrees):
            c, s = np.cos(np.deg2rad(degree)), np.sin(np.deg2rad(degree))
            plane = np.eye(3)
            a, b = [n for n in range(3) if n != axis]
            plane[a, a], plane[a, b], plane[b, a], plane[b, b] = c, -s, s, c
            turn = plane @ turn
        return (np.eye(3) if self.start is None else self.start) @ turn.T

    @cached_property
    def corner(self) -> NDArray[np.float64]:
        """Position of the first voxel of the first slice, mm, LPS."""
        half = np.array(
            [
                (self.columns - 1) * self.column_mm,
                (self.rows - 1) * self.row_mm,
                (self.slices - 1) * self.slice_mm,
            ]
        )
        return np.array(self.centre) - half / 2 @ self.axes

    def positions(self) -> NDArray[np.float64]:
        """The first voxel of every slice, (slices, 3)."""
        return self.corner + np.arange(self.slices)[:, None] * self.slice_mm * self.axes[2]

    def world(self, position: NDArray[np.float64]) -> NDArray[np.float64]:
        """Where the voxels of the slice at a position lie, (rows, columns, 3)."""
        r, c = np.meshgrid(np.arange(self.rows), np.arange(self.columns), indexing="ij")
        along = c[..., None] * self.column_mm * self.axes[0] + r[..., None] * self.row_mm * self.axes[1]
        return position + along


SAGITTAL = np.array([[0.0, 1, 0], [0, 0, -1], [1, 0, 0]])

PHYSICS: dict[str, dict[str, object]] = {
    "t1": {"SeriesDescription": "t1_se_tra", "RepetitionTime": 600, "EchoTime": 10},
    "t1c": {
        "SeriesDescription": "t1_se_tra post gad",
        "RepetitionTime": 600,
        "EchoTime": 10,
        "ContrastBolusAgent": "Gadovist",
    },
    "t2": {"SeriesDescription": "t2_tse_tra", "RepetitionTime": 4500, "EchoTime": 100},
    "flair": {
        "SeriesDescription": "t2_tirm_tra_dark-fluid",
        "RepetitionTime": 9000,
        "EchoTime": 120,
        "InversionTime": 2500,
        "ScanningSequence": ["SE", "IR"],
    },
}
"""What the header of each modality says, in the words of a common scanner."""

NUMBERS = {"t1": 3, "t1c": 9, "t2": 4, "flair": 5}


def uid(*parts: object) -> UID:
    """A UID that is a function of some words."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:15]
    return UID(f"2.25.{int.from_bytes(digest, 'big')}")


@dataclass(frozen=True)
class Made:
    """How a series is to be made."""

    modality: str = "t1c"
    grid: Grid = Grid()
    study: str = "study"
    name: str = ""
    """Tells series of one modality apart."""
    frame: str = "frame"
    """Of reference."""
    patient: str = "CANARY^Patient"
    enhanced: bool = False
    shuffle: bool = True
    slopes: Callable[[int], tuple[float, float]] = lambda _: (1.0, 0.0)
    """Slice -> slope and intercept."""
    changes: tuple[tuple[str, object], ...] = ()
    """Header fields that differ from those of the modality; None takes one away."""
    syntax: str = ExplicitVRLittleEndian
    skull: float = 0.0

    def with_header(self, **changes: object) -> "Made":
        """The same with other header fields."""
        return replace(self, changes=(*self.changes, *changes.items()))


def series(made: Made) -> list[FileDataset]:
    """The instances of a series: one a slice, or a single Enhanced one."""
    return [_enhanced(made)] if made.enhanced else _classic(made)


def study(enhanced: bool = False, **changes: object) -> list[FileDataset]:
    """The four series of a study on one grid."""
    kept = {name: changes.pop(name) for name in list(changes) if name in NUMBERS}
    datasets = []
    for modality in NUMBERS:
        made = kept.get(modality, Made(modality, enhanced=enhanced, **changes))
        datasets += series(made)
    return datasets


def save(datasets: Sequence[Dataset], folder: Path, seed: int = 0) -> Path:
    """Write instances under names that say nothing of their order."""
    folder.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(seed).permutation(len(datasets))
    for name, n in enumerate(order):
        write(datasets[n], folder / f"IM{name:05}")
    return folder


def write(dataset: Dataset, path: Path) -> Path:
    """One instance in the transfer syntax that its meta information names."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_compressed and not syntax.is_deflated and not dataset["PixelData"].is_undefined_length:
        dataset = _compressed(dataset, syntax)
    dataset.set_original_encoding(syntax.is_implicit_VR, syntax.is_little_endian)
    dataset.save_as(path, enforce_file_format=True)
    return path


def _compressed(dataset: Dataset, syntax: UID) -> Dataset:
    raw = FileDataset(None, dict(dataset), file_meta=FileMetaDataset(dataset.file_meta), preamble=b"\0" * 128)
    raw.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    raw.compress(syntax, generate_instance_uid=False)
    return raw


def _patient(made: Made, kind: str) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(kind)
    meta.TransferSyntaxUID = UID(made.syntax)
    meta.ImplementationClassUID = uid("implementation")
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    fields: dict[str, object] = {
        "SOPClassUID": UID(kind),
        "PatientName": made.patient,
        "PatientID": f"CANARY-{made.patient}",
        "PatientBirthDate": "19550401",
        "PatientSex": "F",
        "StudyInstanceUID": uid("study", made.study),
        "StudyDate": "20250102",
        "StudyTime": "101112",
        "StudyID": "7",
        "StudyDescription": "CANARY head",
        "AccessionNumber": "CANARY123",
        "ReferringPhysicianName": "CANARY^Doctor",
        "Modality": "MR",
        "Manufacturer": "brainseg tests",
        "ManufacturerModelName": "phantom",
        "DeviceSerialNumber": "1",
        "SoftwareVersions": "1",
        "SeriesInstanceUID": uid("series", made.study, made.modality, made.name),
        "SeriesNumber": NUMBERS[made.modality],
        "SeriesDate": "20250102",
        "SeriesTime": "101500",
        "ContentDate": "20250102",
        "ContentTime": "101500",
        "AcquisitionDate": "20250102",
        "AcquisitionTime": "101500",
        "FrameOfReferenceUID": uid("frame", made.study, made.frame),
        "PositionReferenceIndicator": "",
        "PatientPosition": "HFS",
        "BodyPartExamined": "BRAIN",
        "ScanningSequence": "SE",
        "SequenceVariant": "NONE",
        "ScanOptions": "",
        "MRAcquisitionType": "2D",
        "MagneticFieldStrength": "3",
        "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": made.grid.rows,
        "Columns": made.grid.columns,
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 0,
        **PHYSICS[made.modality],
    }
    for name, value in {**fields, **dict(made.changes)}.items():
        if value is not None:
            setattr(dataset, name, value)
    return dataset


def _like(common: FileDataset) -> FileDataset:
    """A copy whose fields change on their own; making it anew would take ten times as long."""
    elements = {element.tag: copy(element) for element in common}
    return FileDataset(
        None, elements, file_meta=FileMetaDataset(deepcopy(common.file_meta)), preamble=b"\0" * 128
    )


def _slice(made: Made, n: int, position: NDArray[np.float64]) -> NDArray[np.uint16]:
    slope, intercept = made.slopes(n)
    gain = {"t1": 1.0, "t1c": 1.3, "t2": 0.8, "flair": 1.1}[made.modality]
    stored = (truth(made.grid.world(position), gain) - intercept) / slope
    return np.rint(stored).clip(0, 65535).astype("<u2")


def _classic(made: Made) -> list[FileDataset]:
    made_slices = []
    grid = made.grid
    common = _patient(made, CLASSIC)
    for n, position in enumerate(grid.positions()):
        dataset = _like(common)
        dataset.SOPInstanceUID = uid("instance", made.study, made.modality, made.name, n)
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.InstanceNumber = n + 1
        dataset.ImagePositionPatient = [_ds(v) for v in position]
        dataset.ImageOrientationPatient = [_ds(v) for v in grid.axes[:2].ravel()]
        dataset.PixelSpacing = [_ds(grid.row_mm), _ds(grid.column_mm)]
        dataset.SliceThickness = _ds(grid.slice_mm)
        slope, intercept = made.slopes(n)
        if (slope, intercept) != (1.0, 0.0):
            dataset.RescaleSlope, dataset.RescaleIntercept = _ds(slope), _ds(intercept)
            dataset.RescaleType = "US"
        dataset.PixelData = _bytes(_slice(made, n, position), made.syntax)
        dataset["PixelData"].VR = "OW"
        made_slices.append(dataset)
    return made_slices


def _bytes(pixels: NDArray[np.uint16], syntax: str) -> bytes:
    big = syntax == "1.2.840.10008.1.2.2"
    return pixels.astype(">u2" if big else "<u2").tobytes()


def _enhanced(made: Made) -> FileDataset:
    grid = made.grid
    dataset = _patient(made, ENHANCED)
    physics = dict(PHYSICS[made.modality]) | dict(made.changes)
    for name in ("RepetitionTime", "EchoTime", "InversionTime", "ContrastBolusAgent", "ScanningSequence"):
        if name in dataset:
            del dataset[name]
    dataset.SOPInstanceUID = uid("instance", made.study, made.modality, made.name, "enhanced")
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.InstanceNumber = 1
    order = np.arange(grid.slices)
    if made.shuffle:
        order = np.random.default_rng(7).permutation(order)
    dataset.NumberOfFrames = grid.slices
    positions = grid.positions()
    measures = _item(PixelSpacing=[_ds(grid.row_mm), _ds(grid.column_mm)], SliceThickness=_ds(grid.slice_mm))
    shared = _item(
        PixelMeasuresSequence=[measures],
        PlaneOrientationSequence=[_item(ImageOrientationPatient=[_ds(v) for v in grid.axes[:2].ravel()])],
        MRTimingAndRelatedParametersSequence=[_item(RepetitionTime=float(physics["RepetitionTime"]))],
        MREchoSequence=[_item(EffectiveEchoTime=float(physics["EchoTime"]))],
        MRModifierSequence=[
            _item(InversionRecovery="YES", InversionTimes=float(physics["InversionTime"]))
            if "InversionTime" in physics
            else _item(InversionRecovery="NO")
        ],
    )
    dataset.SharedFunctionalGroupsSequence = DicomSequence([shared])
    if physics.get("ContrastBolusAgent"):
        code = _item(CodeValue="C-B0322", CodingSchemeDesignator="SRT", CodeMeaning="Gadolinium")
        dataset.ContrastBolusAgentSequence = DicomSequence([code])
    frames = []
    for n in order:
        slope, intercept = made.slopes(n)
        frames.append(
            _item(
                FrameContentSequence=[
                    _item(StackID="1", InStackPositionNumber=int(n) + 1, DimensionIndexValues=[1, int(n) + 1])
                ],
                PlanePositionSequence=[_item(ImagePositionPatient=[_ds(v) for v in positions[n]])],
                PixelValueTransformationSequence=[
                    _item(RescaleSlope=_ds(slope), RescaleIntercept=_ds(intercept), RescaleType="US")
                ],
            )
        )
    dataset.PerFrameFunctionalGroupsSequence = DicomSequence(frames)
    pixels = np.stack([_slice(made, n, positions[n]) for n in order])
    dataset.PixelData = _bytes(pixels, made.syntax)
    dataset["PixelData"].VR = "OW"
    return dataset


def _item(**fields: object) -> Dataset:
    item = Dataset()
    for name, value in fields.items():
        setattr(item, name, DicomSequence(value) if name.endswith("Sequence") else value)
    return item


def _ds(value: float) -> str:
    """A decimal string of at most 16 characters."""
    for digits in range(14, 3, -1):
        text = f"{value:.{digits}g}"
        if len(text) <= 16:
            return text
    raise ValueError(value)


__all__ = ["IMPLICIT", "Grid", "Made", "save", "series", "study", "truth", "uid", "write"]
IMPLICIT = ImplicitVRLittleEndian
