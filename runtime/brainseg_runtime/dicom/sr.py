"""A structured report (TID 1500): volumes and diameters of what was found."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from io import BytesIO
from typing import Any

import numpy as np
import pydicom
from highdicom import sr
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from brainseg_runtime.diameter import largest_diameter, largest_in_slice
from brainseg_runtime.dicom.coding import BRAIN, MILLILITRE, MILLIMETRE, MR_BRAIN, finding
from brainseg_runtime.dicom.seg import (
    MANUFACTURER,
    SERIES_NUMBERS,
    Origin,
    algorithm_parameters,
    equipment,
    mismatch,
    stamp,
    without_private,
)
from brainseg_runtime.volume import Segmentation

__all__ = ["Measured", "make_report", "measure", "measured_in"]


@dataclass(frozen=True)
class Measured:
    """The size of one label or region."""

    name: str
    labels: tuple[int, ...]
    volume_ml: float
    diameter_mm: float
    """Largest distance between two voxels of one connected piece."""
    in_slice_mm: float
    """The same within one slice."""


def measure(segmentation: Segmentation) -> tuple[Measured, ...]:
    """The sizes of every region, then of every label that is no region by itself."""
    parts = {name: tuple(values) for name, values in segmentation.regions.items()}
    known = set(parts.values())
    parts |= {name: (v,) for v, name in sorted(segmentation.names.items()) if (v,) not in known}
    return tuple(_measured(name, values, segmentation) for name, values in parts.items())


def make_report(
    segmentation: Segmentation,
    origin: Origin,
    seg: Dataset,
    measured: Sequence[Measured],
    notes: Sequence[str],
) -> Dataset:
    """A report that refers to the SEG where a region is one segment, else to the images themselves.

    ``notes`` are the warnings about the result, as comments.
    """
    numbers = {value: n for n, value in enumerate(sorted(segmentation.names), start=1)}
    report = sr.MeasurementReport(
        observation_context=_observer(origin),
        procedure_reported=MR_BRAIN,
        imaging_measurements=[_group(one, origin, seg, numbers) for one in measured],
        title=codes.DCM.ImagingMeasurementReport,
    )
    for note in notes:
        report[0].ContentSequence.append(_comment(note))
    headers = [without_private(header) for header in origin.headers]
    document = sr.Comprehensive3DSR(
        evidence=[*headers, seg],
        content=report[0],
        series_instance_uid=origin.uid("series", "SR"),
        series_number=SERIES_NUMBERS["SR"],
        sop_instance_uid=origin.uid("instance", "SR"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        is_complete=True,
        is_final=False,
        contributing_equipment=[equipment(origin)],
    )
    document.SeriesDescription = "AI measurements, research use only"
    document.ManufacturerModelName = origin.model["name"][:64]
    document.SoftwareVersions = version("brainseg-runtime")
    return stamp(document, origin, "SR")


def measured_in(written: bytes) -> dict[str, dict[str, float]]:
    """The numbers in a report, read from its tree alone: tracking identifier -> concept -> value."""
    document = pydicom.dcmread(BytesIO(written))
    found: dict[str, dict[str, float]] = {}
    for item in _items(document):
        if _concept(item) != "125007":
            continue
        name, values = "", {}
        for child in item.ContentSequence:
            if _concept(child) == "112039":
                name = str(child.TextValue)
            elif child.ValueType == "NUM":
                values[_concept(child)] = float(child.MeasuredValueSequence[0].NumericValue)
        found[name] = values
    return found


def require_equal(written: bytes, measured: Sequence[Measured]) -> None:
    """Read a report back and hold its numbers against those that were measured.

    Raises:
        BrainsegError: ``E_READBACK``.
    """
    meant = {f"brainseg {one.name}": _numbers(one) for one in measured}
    found = measured_in(written)
    if found != meant:
        raise mismatch("the report holds other numbers than were measured")


def _measured(name: str, values: tuple[int, ...], segmentation: Segmentation) -> Measured:
    mask = np.isin(segmentation.labels, values)
    grid = segmentation.geometry
    return Measured(
        name,
        values,
        round(float(np.count_nonzero(mask)) * grid.voxel_volume / 1000.0, 4),
        round(largest_diameter(mask, grid), 2),
        round(largest_in_slice(mask, grid), 2),
    )


def _numbers(one: Measured) -> dict[str, float]:
    return {
        codes.SCT.Volume.value: one.volume_ml,
        codes.SCT.Diameter.value: one.diameter_mm,
        codes.SCT.LongAxis.value: one.in_slice_mm,
    }


def _group(
    one: Measured, origin: Origin, seg: Dataset, numbers: dict[int, int]
) -> sr.VolumetricROIMeasurementsAndQualitativeEvaluations | sr.MeasurementsAndQualitativeEvaluations:
    category, kind = finding(one.name)
    common: dict[str, Any] = {
        "tracking_identifier": sr.TrackingIdentifier(origin.tracking(one.name), f"brainseg {one.name}"),
        "finding_type": kind,
        "finding_category": category,
        "finding_sites": [sr.FindingSite(BRAIN)],
        "algorithm_id": sr.AlgorithmIdentification(
            name=origin.model["name"],
            version=f"brainseg-runtime {version('brainseg-runtime')}",
            parameters=[f"{key}={value}" for key, value in algorithm_parameters(origin).items()],
        ),
        "measurements": [
            sr.Measurement(name=codes.SCT.Volume, value=one.volume_ml, unit=MILLILITRE),
            sr.Measurement(
                name=codes.SCT.Diameter,
                value=one.diameter_mm,
                unit=MILLIMETRE,
                derivation=codes.SCT.Maximum,
            ),
            sr.Measurement(name=codes.SCT.LongAxis, value=one.in_slice_mm, unit=MILLIMETRE),
        ],
    }
    header = origin.headers[0]
    if len(one.labels) == 1:
        segment = sr.ReferencedSegment(
            sop_class_uid=seg.SOPClassUID,
            sop_instance_uid=seg.SOPInstanceUID,
            segment_number=numbers[one.labels[0]],
            source_series=sr.SourceSeriesForSegmentation(header.SeriesInstanceUID),
        )
        return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(**common, referenced_segment=segment)
    # A region of several labels is no segment; the images that it lies on are named instead.
    images = [sr.SourceImageForMeasurementGroup(h.SOPClassUID, h.SOPInstanceUID) for h in origin.headers[:1]]
    return sr.MeasurementsAndQualitativeEvaluations(**common, source_images=images)


def _observer(origin: Origin) -> sr.ObservationContext:
    device = sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=origin.uid("observer"),
            name=MANUFACTURER,
            manufacturer_name=MANUFACTURER,
            model_name=origin.model["name"],
            serial_number=origin.model.get("sha256", "unknown")[:16],
        ),
    )
    return sr.ObservationContext(observer_device_context=device)


def _comment(text: str) -> sr.TextContentItem:
    return sr.TextContentItem(
        name=codes.DCM.Comment, value=text, relationship_type=sr.RelationshipTypeValues.CONTAINS
    )


def _items(item: Dataset) -> list[Dataset]:
    children = list(item.get("ContentSequence") or ())
    return children + [below for child in children for below in _items(child)]


def _concept(item: Dataset) -> str:
    names = item.get("ConceptNameCodeSequence")
    return str(names[0].CodeValue) if names else ""
