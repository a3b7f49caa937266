"""From a series to voxels on a grid: positions decide, and what is no regular stack is refused.

highdicom judges the positions and makes the affine. The pixels are read here, because highdicom looks up
the whole standard for every slice, which takes three quarters of its time.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from highdicom.spatial import create_affine_matrix_from_attributes, get_volume_positions
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from brainseg_runtime.dicom.series import Series
from brainseg_runtime.errors import ScanRefused
from brainseg_runtime.geometry import Affine, Geometry
from brainseg_runtime.nifti import MAX_DIM, MAX_INTENSITY, MAX_SLOPE, MAX_VOXELS, MIN_DIM, SPACING_MM

__all__ = ["RAS_FROM_LPS", "Frame", "Plan", "fill", "frames_of", "plan"]

RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
RESIDUAL_MM = 0.1
"""How far a slice may lie from its place in the regular stack; highdicom allows 1 % of the spacing."""
DIRECTION_TOLERANCE = 1e-4
"""How far two slices' direction cosines may differ, which scanners round."""
_EXPORT_AGAIN = "Export the series again; brainseg takes complete, rectangular stacks."

Vector = NDArray[np.float64]


class _Unfit(Exception):
    """What a series has that no stack has, in words that hold nothing from its headers."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One slice, as its header describes it."""

    instance: int
    """Which instance of the series holds it."""
    index: int
    """Which frame of that instance it is, from 0."""
    position: Vector
    """Of the first voxel's centre, (3,), mm, LPS."""
    directions: Vector
    """Along a row, then along a column: (6,) cosines, LPS."""
    spacing: tuple[float, float]
    """Between rows, between columns, in mm."""
    slope: float
    intercept: float
    origin: str
    """FrameOfReferenceUID."""


@dataclass(frozen=True, eq=False)
class Plan:
    """How the frames of a series make a volume."""

    geometry: Geometry
    """I runs along a row, J along a column, K along the stack."""
    order: tuple[Frame, ...]
    """The frames by K."""
    origin: str
    """FrameOfReferenceUID."""


def plan(series: Series) -> Plan:
    """The grid of a series, from its headers alone.

    Raises:
        ScanRefused: ``E_NOT_MR``, ``E_DICOM_DAMAGED``, ``E_SERIES_IRREGULAR``, ``E_FRAME_OF_REFERENCE``,
            ``E_DIMS``, ``E_TOO_BIG``, ``E_SPACING``, ``E_AFFINE``, ``E_SCALE``.
    """
    if not series.is_mr:
        raise ScanRefused(
            "E_NOT_MR", f"{series.name} is of modality {series.modality}, not MR.", "Give an MRI."
        )
    try:
        frames = tuple(frames_of(series))
        shape = _one_shape(series)
    except _Unfit as error:
        raise _irregular(series, f"has {error}") from error
    except Exception as error:  # pydicom fails in many ways; its words may hold what stands in the file
        raise _irregular(series, f"lacks what places it in the patient ({type(error).__name__})") from error
    rows, columns = shape
    _check_size(series, rows, columns, len(frames))
    _check_frames(series, frames)
    directions = frames[0].directions
    step, places = get_volume_positions(
        [frame.position.tolist() for frame in frames], directions.tolist(), allow_missing_positions=False
    )
    if step is None or places is None:
        raise _irregular(series, "has slices that are missing, doubled, sheared or unevenly spaced")
    order = tuple(frame for _, frame in sorted(zip(places, frames, strict=True), key=lambda pair: pair[0]))
    affine = _affine(order, step)
    _check_residual(series, order, affine)
    geometry = Geometry((columns, rows, len(order)), RAS_FROM_LPS @ affine)
    if not all(SPACING_MM[0] <= mm <= SPACING_MM[1] for mm in geometry.spacing):
        raise ScanRefused(
            "E_SPACING", f"{series.name} has voxels of {geometry.spacing} mm.", "Export it again."
        )
    return Plan(geometry, order, frames[0].origin)


def frames_of(series: Series) -> Iterator[Frame]:
    """Every slice of a series, classic or Enhanced."""
    for n, instance in enumerate(series.instances):
        header = instance.header
        if "PerFrameFunctionalGroupsSequence" in header:
            yield from _enhanced_frames(n, header)
        else:
            if int(header.get("NumberOfFrames") or 1) != 1:
                raise _Unfit("many frames without functional groups")
            yield _frame(n, 0, header, header, header, header)


def fill(out: NDArray[np.float32], series: Series, way: Plan, datasets: Sequence[Dataset]) -> None:
    """Fill ``out`` (I, J, K) with the scanner's intensities; ``datasets`` hold plain pixels.

    Raises:
        ScanRefused: ``E_DICOM_DAMAGED``, ``E_NONFINITE``, ``E_SCALE``, ``E_CONSTANT``.
    """
    stored: dict[int, NDArray[Any]] = {}
    for k, frame in enumerate(way.order):
        if frame.instance not in stored:
            stored = {frame.instance: _pixels(series, datasets[frame.instance])}
        pixels = stored[frame.instance][frame.index]
        out[:, :, k] = (pixels * np.float64(frame.slope) + np.float64(frame.intercept)).T
    low, high = float(out.min()), float(out.max())
    if not math.isfinite(low + high):
        raise ScanRefused("E_NONFINITE", f"{series.name} holds infinite voxels.", "Export it again.")
    if max(-low, high) > MAX_INTENSITY:
        raise ScanRefused("E_SCALE", f"{series.name} holds {low:g} to {high:g}.", "Export it again.")
    if low == high:
        raise ScanRefused("E_CONSTANT", f"{series.name} is {low:g} everywhere.", "Export it again.")


def _pixels(series: Series, dataset: Dataset) -> NDArray[Any]:
    """The stored values of an instance, (frames, rows, columns)."""
    try:
        pixels = np.asarray(dataset.pixel_array)
        rows, columns = int(dataset.Rows), int(dataset.Columns)
        return pixels.reshape(-1, rows, columns)
    except Exception as error:  # pydicom fails in many ways on damaged pixels
        raise ScanRefused(
            "E_DICOM_DAMAGED",
            f"the pixels of {series.name} cannot be read ({type(error).__name__}).",
            "Export the series again from its source.",
        ) from error


def _enhanced_frames(n: int, header: Dataset) -> Iterator[Frame]:
    shared = header.SharedFunctionalGroupsSequence[0]
    own = header.PerFrameFunctionalGroupsSequence
    if len(own) != int(header.NumberOfFrames):
        raise _Unfit("another number of frames than of their descriptions")
    for index, group in enumerate(own):

        def macro(name: str, group: Dataset = group) -> Dataset:
            return group[name][0] if name in group else shared[name][0]  # type: ignore[no-any-return]

        scaled = "PixelValueTransformationSequence"
        yield _frame(
            n,
            index,
            macro("PlanePositionSequence"),
            macro("PlaneOrientationSequence"),
            macro("PixelMeasuresSequence"),
            macro(scaled) if scaled in group or scaled in shared else Dataset(),
            str(header.FrameOfReferenceUID),
        )


def _frame(
    n: int,
    index: int,
    place: Dataset,
    orientation: Dataset,
    measures: Dataset,
    scaling: Dataset,
    origin: str | None = None,
) -> Frame:
    if "ModalityLUTSequence" in scaling:
        raise _Unfit("a table of intensities instead of slope and intercept")
    spacing = measures.PixelSpacing
    slope, intercept = scaling.get("RescaleSlope"), scaling.get("RescaleIntercept")
    return Frame(
        n,
        index,
        np.array([float(v) for v in place.ImagePositionPatient]).reshape(3),
        np.array([float(v) for v in orientation.ImageOrientationPatient]).reshape(6),
        (float(spacing[0]), float(spacing[1])),
        1.0 if slope is None else float(slope),
        0.0 if intercept is None else float(intercept),
        origin or str(place.get("FrameOfReferenceUID") or ""),
    )


def _one_shape(series: Series) -> tuple[int, int]:
    """Rows and columns, the same for all instances, in one grey channel."""
    shapes = set()
    for instance in series.instances:
        header = instance.header
        if int(header.get("SamplesPerPixel", 1)) != 1 or header.PhotometricInterpretation != "MONOCHROME2":
            raise _Unfit("pixels that are not of one grey channel")
        if "MOSAIC" in _words(header.get("ImageType")):
            raise _Unfit("a mosaic of slices in one image")
        shapes.add((int(header.Rows), int(header.Columns)))
    if len(shapes) != 1:
        raise _Unfit("slices of different sizes")
    return shapes.pop()


def _words(value: object) -> list[str]:
    return [str(word) for word in value] if isinstance(value, Iterable) else []


def _check_size(series: Series, rows: int, columns: int, slices: int) -> None:
    if not all(MIN_DIM <= n <= MAX_DIM for n in (rows, columns, slices)):
        raise ScanRefused(
            "E_DIMS",
            f"{series.name} has {slices} slices of {rows} x {columns} voxels.",
            f"Give a series of {MIN_DIM} to {MAX_DIM} voxels per axis.",
        )
    if rows * columns * slices > MAX_VOXELS:
        raise ScanRefused(
            "E_TOO_BIG", f"{series.name} has {rows * columns * slices} voxels.", "Give the MRI of one head."
        )


def _check_frames(series: Series, frames: Sequence[Frame]) -> None:
    first = frames[0]
    for frame in frames:
        numbers = [*frame.position, *frame.directions, *frame.spacing]
        if not np.isfinite(numbers).all() or np.abs(frame.position).max() > 1e5:
            raise ScanRefused("E_AFFINE", f"{series.name} is placed nowhere.", "Export it again.")
        if not (abs(frame.slope) <= MAX_SLOPE and frame.slope and abs(frame.intercept) <= MAX_INTENSITY):
            raise ScanRefused(
                "E_SCALE", f"{series.name} is scaled by {frame.slope:g}.", "Export it again from its source."
            )
        if np.abs(frame.directions - first.directions).max() > DIRECTION_TOLERANCE:
            raise _irregular(series, "has slices of different orientations")
        if frame.spacing != first.spacing:
            raise _irregular(series, "has slices of different voxel sizes")
        if frame.origin != first.origin or not frame.origin:
            raise ScanRefused(
                "E_FRAME_OF_REFERENCE",
                f"the slices of {series.name} do not share a frame of reference.",
                _EXPORT_AGAIN,
            )
    row, column = first.directions[:3], first.directions[3:]
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if max(abs(length - 1) for length in lengths) > 1e-3 or abs(row @ column) > 1e-3:
        raise ScanRefused("E_AFFINE", f"{series.name} has axes that are none.", "Export it again.")


def _affine(order: Sequence[Frame], step: float) -> Affine:
    """Voxel (I, J, K) -> mm, LPS. The step of the stack comes from its two ends, not from a mean."""
    affine = np.array(
        create_affine_matrix_from_attributes(
            order[0].position.tolist(),
            order[0].directions.tolist(),
            order[0].spacing,
            step,
            index_convention="RD",
        )
    )
    affine[:3, 2] = (order[-1].position - order[0].position) / max(len(order) - 1, 1)
    return affine


def _check_residual(series: Series, order: Sequence[Frame], affine: Affine) -> None:
    places = affine[:3, 3] + np.arange(len(order))[:, None] * affine[:3, 2]
    residual = float(np.linalg.norm(places - [frame.position for frame in order], axis=1).max())
    if residual > RESIDUAL_MM:
        raise _irregular(series, f"has a slice {residual:.2g} mm away from its place in the stack")


def _irregular(series: Series, what: str) -> ScanRefused:
    return ScanRefused("E_SERIES_IRREGULAR", f"{series.name} {what}.", _EXPORT_AGAIN)
