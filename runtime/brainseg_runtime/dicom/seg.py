"""A segmentation as a DICOM SEG on the geometry of the series that it was drawn on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from io import BytesIO
from typing import Any, Literal

import highdicom as hd
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import UID
from pydicom.valuerep import DA, DT, TM

from brainseg_runtime.dicom.coding import BRAIN, finding, uid_of
from brainseg_runtime.dicom.stack import RAS_FROM_LPS
from brainseg_runtime.errors import BrainsegError
from brainseg_runtime.geometry import Geometry
from brainseg_runtime.volume import Segmentation

__all__ = ["Origin", "SegType", "labels_in", "make_seg", "require_equal", "to_bytes"]

SegType = Literal["BINARY", "LABELMAP"]

MANUFACTURER = "brainseg"
SERIES_NUMBERS = {"BINARY": 7101, "LABELMAP": 7102, "SR": 7103}
PLACE_VOXELS = 1e-3
"""How far a frame of a SEG may lie from the slice that it stands for, in voxels."""


@dataclass(frozen=True, eq=False)
class Origin:
    """Where a result comes from, as far as its DICOM objects say it."""

    headers: tuple[Dataset, ...]
    """Of the instances of the reference series."""
    record: Mapping[str, Any]
    """Model, engine, options and inputs, as in the scan's JSON."""

    @property
    def model(self) -> Mapping[str, str]:
        """Name and SHA-256 of the model."""
        model: Mapping[str, str] = self.record["model"]
        return model

    def uid(self, *what: str) -> UID:
        """An identifier that follows from inputs, model, engine, options and software."""
        keys = ("inputs", "reference", "resample", "register", "model", "engine", "options")
        made_by = {key: self.record.get(key) for key in keys}
        return uid_of(made_by, version("brainseg-runtime"), what)

    def tracking(self, segment: str) -> UID:
        """The identifier of a finding, the same in every object that speaks of it."""
        return self.uid("tracking", segment)


def make_seg(segmentation: Segmentation, origin: Origin, kind: SegType) -> Dataset:
    """A SEG with one segment per label; without any labelled voxel all its frames are empty."""
    names = sorted(segmentation.names.items())
    numbers = {value: n for n, (value, _) in enumerate(names, start=1)}
    table = np.zeros(256, np.uint8)
    for value, number in numbers.items():
        table[value] = number
    # highdicom wants (slice, row, column); ours is (I, J, K) with I along a row.
    lps = RAS_FROM_LPS @ segmentation.geometry.affine[:, [2, 1, 0, 3]]
    volume = hd.Volume(
        np.ascontiguousarray(table[segmentation.labels].transpose(2, 1, 0)),
        lps,
        coordinate_system="PATIENT",
        frame_of_reference_uid=str(origin.headers[0].FrameOfReferenceUID),
    )
    seg = hd.seg.Segmentation(
        source_images=[without_private(header) for header in origin.headers],
        pixel_array=volume,
        segmentation_type=hd.seg.SegmentationTypeValues[kind],
        segment_descriptions=[_segment(numbers[value], name, origin) for value, name in names],
        series_instance_uid=origin.uid("series", kind),
        series_number=SERIES_NUMBERS[kind],
        sop_instance_uid=origin.uid("instance", kind),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=origin.model["name"][:64],
        software_versions=version("brainseg-runtime"),
        device_serial_number=origin.model.get("sha256", "unknown")[:16],
        content_label="BRAINSEG",
        content_description="AI segmentation, research use only",
        content_creator_name="brainseg^",
        # An empty answer is written out frame by frame: nobody can take it for a lost one.
        omit_empty_frames=bool(segmentation.labels.any()),
        contributing_equipment=[equipment(origin)],
    )
    seg.SeriesDescription = f"AI segmentation ({kind.lower()}), research use only"
    return stamp(seg, origin, kind)


def labels_in(seg: Dataset, geometry: Geometry, values: Sequence[int]) -> NDArray[np.uint8]:
    """The labels (I, J, K) that a SEG puts on a grid: every pixel goes where its own frame says it lies.

    ``values`` are the labels of segments 1, 2, ... Of a FRACTIONAL SEG half of a voxel or more counts
    (PS3.3 C.8.20). It shares nothing with the code that writes.

    Raises:
        BrainsegError: ``E_READBACK`` if a frame does not lie on the grid.
    """
    labels = np.zeros(geometry.shape, np.uint8)
    to_voxel = np.asarray(np.linalg.inv(geometry.affine) @ RAS_FROM_LPS, np.float64)
    frames = seg.pixel_array.reshape(-1, int(seg.Rows), int(seg.Columns))
    if seg.SegmentationType == "FRACTIONAL":
        frames = 2 * frames.astype(np.uint16) >= int(seg.MaximumFractionalValue)
    shared = seg.SharedFunctionalGroupsSequence[0]
    for frame, own in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        start, along_row, along_column = _placed(shared, own, to_voxel)
        rows, columns = np.nonzero(frame)
        voxels = start + columns[:, None] * along_row + rows[:, None] * along_column
        nearest = np.rint(voxels).astype(np.intp)
        if voxels.size and (
            np.abs(voxels - nearest).max() > PLACE_VOXELS
            or nearest.min() < 0
            or (nearest.max(axis=0) >= geometry.shape).any()
        ):
            raise mismatch("a frame of the SEG does not lie on the scan's grid")
        found = frame[rows, columns]
        if seg.SegmentationType != "LABELMAP":
            found = np.full(rows.shape, own.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        labels[tuple(nearest.T)] = np.array([0, *values], np.uint8)[found]
    return labels


def require_equal(written: bytes, segmentation: Segmentation) -> None:
    """Read a SEG back and hold it against the mask, voxel by voxel in the patient's space.

    Raises:
        BrainsegError: ``E_READBACK``.
    """
    seg = pydicom.dcmread(BytesIO(written))
    values = sorted(segmentation.names)
    if not np.array_equal(labels_in(seg, segmentation.geometry, values), segmentation.labels):
        raise mismatch("the SEG holds other voxels than the mask")


def to_bytes(dataset: Dataset) -> bytes:
    """A dataset as the bytes of a DICOM file."""
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def stamp(dataset: Dataset, origin: Origin, kind: str) -> Dataset:
    """Make an object a function of its content: times are the study's own, identifiers follow."""
    date, time = _when(origin)
    for name in ("ContentDate", "SeriesDate"):
        setattr(dataset, name, date)
    for name in ("ContentTime", "SeriesTime"):
        setattr(dataset, name, time)
    for name in ("InstanceCreationDate", "InstanceCreationTime"):
        if name in dataset:
            delattr(dataset, name)
    for item in dataset.get("ContributingEquipmentSequence") or ():
        if "ContributionDateTime" in item:  # highdicom signs with the time of day
            item.ContributionDateTime = date + time
    organization = origin.uid("dimensions", kind)
    for sequence in ("DimensionOrganizationSequence", "DimensionIndexSequence"):
        for item in dataset.get(sequence) or ():
            if "DimensionOrganizationUID" in item:
                item.DimensionOrganizationUID = organization
    return dataset


def equipment(origin: Origin) -> hd.ContributingEquipment:
    """The software as a contributor, with what ran."""
    engine = origin.record.get("engine", {})
    ran = f"{engine.get('engine', '?')} {engine.get('version', '')} {engine.get('precision', '')}"
    return hd.ContributingEquipment(
        manufacturer=MANUFACTURER,
        purpose_of_reference=codes.DCM.ProcessingEquipment,
        manufacturer_model_name=origin.model["name"][:64],
        software_versions=version("brainseg-runtime"),
        device_serial_number=origin.model.get("sha256", "unknown")[:16],
        contribution_datetime="".join(_when(origin)),
        contribution_description=f"Segmentation by {ran.strip()}. Research use only."[:1024],
    )


def algorithm_parameters(origin: Origin) -> dict[str, str]:
    """What the result depends on, in words."""
    engine = origin.record.get("engine", {})
    return {
        "model_sha256": origin.model.get("sha256", "unknown"),
        "engine": str(engine.get("engine", "?")),
        "provider": str(engine.get("provider", "?")),
        "precision": str(engine.get("precision", "?")),
        "use": "research only, not a medical device",
    }


def _when(origin: Origin) -> tuple[str, str]:
    """Date and time of the study, which its results carry too, so that equal results are equal bytes."""
    header = origin.headers[0]
    date = str(header.get("StudyDate") or header.get("SeriesDate") or "")
    time = str(header.get("StudyTime") or header.get("SeriesTime") or "").split(".")[0]
    return (
        date if len(date) == 8 and date.isdigit() else "19000101",
        time if len(time) == 6 and time.isdigit() else "000000",
    )


def _segment(number: int, name: str, origin: Origin) -> hd.seg.SegmentDescription:
    category, kind = finding(name)
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name,
        segmented_property_category=category,
        segmented_property_type=kind,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=origin.model["name"],
            family=codes.DCM.ArtificialIntelligence,
            version=f"brainseg-runtime {version('brainseg-runtime')}",
            source=MANUFACTURER,
            parameters=algorithm_parameters(origin),
        ),
        tracking_uid=origin.tracking(name),
        tracking_id=f"brainseg {name}",
        anatomic_regions=[BRAIN],
    )


def without_private(header: Dataset) -> Dataset:
    """A header without what vendors add, some of which holds names that nobody can read."""
    plain = Dataset()
    plain.update({tag: header[tag] for tag in header.keys() if not tag.is_private})  # noqa: SIM118
    plain.file_meta = header.file_meta
    # A date that is none says nothing, and highdicom would refuse the whole study for it.
    for element in plain:
        if element.VR in _CLOCK and element.VM <= 1 and not _is_valid(element):
            element.value = ""
    return plain


def _is_valid(element: DataElement) -> bool:
    try:
        _CLOCK[element.VR](element.value or None)
    except (ValueError, TypeError):
        return False
    return True


_CLOCK: Mapping[str, Callable[[Any], Any]] = {"DA": DA, "TM": TM, "DT": DT}


def _placed(
    shared: Dataset, own: Dataset, to_voxel: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """First voxel of a frame, a step along a row, a step along a column, in voxels of a grid."""

    def macro(name: str) -> Dataset:
        group = own if name in own else shared
        item: Dataset = group[name][0]
        return item

    spacing = [float(mm) for mm in macro("PixelMeasuresSequence").PixelSpacing]
    cosines = np.array([float(v) for v in macro("PlaneOrientationSequence").ImageOrientationPatient])
    start = np.array([float(v) for v in macro("PlanePositionSequence").ImagePositionPatient])
    turn = to_voxel[:3, :3]
    return (
        turn @ start + to_voxel[:3, 3],
        turn @ cosines[:3] * spacing[1],
        turn @ cosines[3:] * spacing[0],
    )


def mismatch(what: str) -> BrainsegError:
    return BrainsegError("E_READBACK", f"{what}.", "Please report it; the result was not kept.")
