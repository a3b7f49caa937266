"""From a scan to the network's grid and back: the only preprocessing there is, and its inverse.

``prepare`` and ``restore`` are tied by a value, the ``Placement``; neither remembers anything. ``examine``
finds out what ``prepare`` goes by, for a GPU that does the rest.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from brainseg_runtime.errors import ScanRefused
from brainseg_runtime.geometry import Geometry, Reorientation, Shape, to_canonical
from brainseg_runtime.spec import ModelSpec
from brainseg_runtime.volume import Volume

__all__ = [
    "SLAB",
    "Examined",
    "Placed",
    "Placement",
    "Prepared",
    "Statistics",
    "examine",
    "interpolate",
    "largest_grid",
    "place",
    "prepare",
    "prepare_labels",
    "restore",
    "samples",
]

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Placement:
    """Where a network's grid lies in the scan that it was made from."""

    scan: Geometry
    """The scan's own grid."""
    reorientation: Reorientation
    """From the scan's axes to R, A, S."""
    start: Shape
    """First voxel of the brain's box, on the reoriented grid."""
    stop: Shape
    """One past the last voxel of the brain's box."""
    grid: Shape
    """(i, j, k) of the network's grid, which spans the same box."""

    @property
    def box(self) -> tuple[slice, slice, slice]:
        """The brain's box as slices of a reoriented array."""
        i, j, k = (slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        return i, j, k

    @property
    def box_shape(self) -> Shape:
        """Voxels of the brain's box along each axis, at the scan's own spacing."""
        i, j, k = (b - a for a, b in zip(self.start, self.stop, strict=True))
        return i, j, k


@dataclass(frozen=True, eq=False)
class Statistics:
    """What is known of a scan's intensities, a value a channel."""

    background: Array
    """(C,): 0 where the channel has none."""
    constant: NDArray[np.bool_]
    """(C,): whether the channel has a background."""
    mean: Array
    """(C,) over the brain; 0 where the spec leaves intensities as they are."""
    scale: Array
    """(C,): 1 / standard deviation over the brain; 1 where the spec leaves intensities as they are."""


@dataclass(frozen=True, eq=False)
class Examined:
    """All that ``prepare`` goes by, and nothing that it computes."""

    placement: Placement
    statistics: Statistics


@dataclass(frozen=True, eq=False)
class Prepared:
    """A scan as the network sees it."""

    data: Array
    """(i, j, k, C): R, A, S axes, the spec's spacing, the brain's box, normalised."""
    placement: Placement


@dataclass(frozen=True, eq=False)
class Placed:
    """Where the brain lies in a scan."""

    placement: Placement
    foreground: NDArray[np.bool_]
    """(I, J, K): the voxels of the scan that are brain; it lies in memory as the scan does."""
    backgrounds: tuple[np.float32 | None, ...]
    """Of every channel; None where it has none."""


def examine(volume: Volume, spec: ModelSpec, placed: Placed | None = None) -> Examined:
    """Where the brain lies in a scan (I, J, K, C), and what its intensities are.

    Raises:
        ScanRefused: as ``prepare``.
    """
    placed = placed or place(volume, spec)
    placement, backgrounds = placed.placement, placed.backgrounds
    count = len(backgrounds)
    mean, scale = np.zeros(count, dtype=np.float32), np.ones(count, dtype=np.float32)
    if spec.normalisation == "zscore":
        for c in range(count):
            mean[c], scale[c] = _moments(volume, placed, c)
    background = np.array([0 if value is None else value for value in backgrounds], dtype=np.float32)
    constant = np.array([value is not None for value in backgrounds])
    return Examined(placement, Statistics(background, constant, mean, scale))


def place(volume: Volume, spec: ModelSpec) -> Placed:
    """Find the brain in a scan: all that a plan needs, and the first of what ``prepare`` does.

    Raises:
        ScanRefused: as ``prepare``.
    """
    if volume.data.shape[3] != len(spec.modalities):
        raise ScanRefused(
            "E_CHANNELS",
            f"scan {volume.scan} has {volume.data.shape[3]} modalities, the model takes "
            f"{[modality.name for modality in spec.modalities]}.",
            "Give one file per modality, in that order.",
        )
    reorientation = to_canonical(volume.geometry)
    backgrounds = [_background(reorientation.apply(volume.data[..., c])) for c in range(volume.data.shape[3])]
    # Compared in the file's own order of axes, which is four times faster than across it.
    stored = np.zeros_like(volume.data[..., 0], dtype=bool)
    for c, background in enumerate(backgrounds):
        if background is None:
            stored[:] = True
        else:
            stored |= volume.data[..., c] != background
    foreground = reorientation.apply(stored)
    start, stop = _bounding_box(foreground, volume.scan)
    spacing = reorientation.geometry(volume.geometry).spacing
    placement = Placement(volume.geometry, reorientation, start, stop, _grid(start, stop, spacing, spec))
    return Placed(placement, stored, tuple(backgrounds))


def largest_grid(geometry: Geometry, spec: ModelSpec) -> Shape:
    """The network's grid over all of a scan: no brain in it has a larger one."""
    reoriented = to_canonical(geometry).geometry(geometry)
    return _grid((0, 0, 0), reoriented.shape, reoriented.spacing, spec)


def prepare(volume: Volume, spec: ModelSpec, placed: Placed | None = None) -> Prepared:
    """Bring a scan onto the network's grid.

    Shapes: (I, J, K, C) -> (i, j, k, C). Axes are reordered exactly; the box of the brain is cut out;
    intensities are z-scored over the brain, background 0; spacing changes by linear interpolation,
    after the z-score, so that the background's own value never bleeds into the brain.

    Raises:
        ScanRefused: ``E_CHANNELS`` for another number of modalities than the spec's, ``E_NO_BRAIN``
            where nothing differs from the background.
    """
    placed = placed or place(volume, spec)
    placement, statistics = placed.placement, examine(volume, spec, placed).statistics
    beyond = np.ascontiguousarray(~placement.reorientation.apply(placed.foreground)[placement.box])
    # Channels first in memory, channels last in view: what an NCDHW graph wants without a copy.
    data = np.empty((len(statistics.mean), *placement.grid), dtype=np.float32)
    for c, (mean, scale) in enumerate(zip(statistics.mean, statistics.scale, strict=True)):
        values = _boxed(volume, placement, c)
        if spec.normalisation == "zscore":
            values -= mean
            values *= scale
            values[beyond] = 0.0
        data[c] = interpolate(values, placement.grid)
    return Prepared(np.moveaxis(data, 0, -1), placement)


def prepare_labels(labels: NDArray[np.uint8], placement: Placement) -> NDArray[np.uint8]:
    """Bring a label image (I, J, K) onto the network's grid (i, j, k), each voxel the nearest label."""
    box = placement.reorientation.apply(labels)[placement.box]
    for axis, (old, new) in enumerate(zip(box.shape, placement.grid, strict=True)):
        nearest = np.floor((np.arange(new) + 0.5) * old / new).astype(np.intp)
        box = np.take(box, nearest, axis=axis)
    return np.ascontiguousarray(box, dtype=np.uint8)


def restore(
    logits: Array, placement: Placement, decide: Callable[[Array], NDArray[np.uint8]]
) -> NDArray[np.uint8]:
    """Bring a network's answer back to the scan's own grid.

    Shapes: (i, j, k, R) -> (I, J, K). Logits are interpolated to the scan's spacing and decided there,
    a slab at a time; ``decide`` maps (..., R) to labels (...) voxel by voxel. Outside the brain's box
    is background.
    """
    reoriented = placement.reorientation
    labels = np.zeros(placement.scan.shape, dtype=np.uint8)
    box = reoriented.apply(labels)[placement.box]
    depth, height, width = placement.box_shape
    for i in range(0, depth, SLAB):
        rows = slice(i, min(i + SLAB, depth))
        slab = _resample_axis(logits, depth, 0, rows)
        box[rows] = decide(_resample_axis(_resample_axis(slab, height, 1), width, 2))
    return labels


SLAB = 32
"""Slices that are interpolated and decided at a time: bounds the memory of ``restore``."""


def _boxed(volume: Volume, placement: Placement, channel: int) -> Array:
    """A copy of one channel's box, (i, j, k), at the scan's own spacing."""
    whole = placement.reorientation.apply(volume.data[..., channel])
    return np.array(whole[placement.box], dtype=np.float32, order="C")


def _background(channel: Array) -> np.float32 | None:
    """The value of the background: the most frequent one, which need not be 0; None without one.

    A background is exactly constant, so a thin regular sample finds it; tissue hardly repeats a value.
    """
    sample = channel[::3, ::3, ::3]
    values, counts = np.unique(sample, return_counts=True)
    most = int(counts.argmax())
    return np.float32(values[most]) if counts[most] >= BACKGROUND_SHARE * sample.size else None


BACKGROUND_SHARE = 0.02
"""Share of the voxels from which a single repeated value counts as background."""


def _bounding_box(foreground: NDArray[np.bool_], scan: str) -> tuple[Shape, Shape]:
    ends = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        (hit,) = np.nonzero(foreground.any(axis=others))
        if hit.size == 0:
            raise ScanRefused(
                "E_NO_BRAIN", f"every voxel of scan {scan} is background.", "Check the input images."
            )
        ends.append((int(hit[0]), int(hit[-1]) + 1))
    (i0, i1), (j0, j1), (k0, k1) = ends
    return (i0, j0, k0), (i1, j1, k1)


def _grid(start: Shape, stop: Shape, spacing: tuple[float, float, float], spec: ModelSpec) -> Shape:
    """The network's grid over a box: as many voxels as come closest to the spec's spacing.

    Spacing is rounded to 0.1 um: an affine's last bits must not decide a voxel count.
    """
    i, j, k = (
        max(1, round((b - a) * round(mm, 4) / target))
        for a, b, mm, target in zip(start, stop, spacing, spec.spacing, strict=True)
    )
    return i, j, k


def _moments(volume: Volume, placed: Placed, channel: int) -> tuple[np.float32, np.float32]:
    """Mean of a channel (I, J, K) over the brain, and 1 / its deviation, which is 0 where all are one."""
    values = volume.data[..., channel]
    # In the order in which they lie in memory: taken across it, they take four times as long.
    order = sorted(range(3), key=lambda axis: -abs(values.strides[axis]))
    inside = values.transpose(order)[placed.foreground.transpose(order)]
    mean = inside.mean(dtype=np.float64)
    deviation = float(inside.std(dtype=np.float64))
    return np.float32(mean), np.float32(1.0 / deviation if deviation > 0 else 0.0)


def interpolate(values: Array, shape: Shape) -> Array:
    """Interpolate (i, j, k) linearly to another shape over the same box, one axis after the other."""
    for axis, size in enumerate(shape):
        values = _resample_axis(values, size, axis)
    return values


def samples(old: int, size: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Array]:
    """Between which of ``old`` samples of an axis each of ``size`` lies, and at which weight of the upper.

    Voxels are cells: sample n of m has its centre at (n + 1/2) / m of the extent.
    """
    if old == size:
        return np.arange(size), np.arange(size), np.zeros(size, dtype=np.float32)
    position = np.clip((np.arange(size) + 0.5) * old / size - 0.5, 0, old - 1)
    below = np.minimum(position.astype(np.intp), old - 2) if old > 1 else np.zeros(size, np.intp)
    return below, np.minimum(below + 1, old - 1), (position - below).astype(np.float32)


def _resample_axis(values: Array, size: int, axis: int, part: slice = slice(None)) -> Array:
    """Interpolate one axis linearly to ``size`` samples over the same extent, and take a part of them."""
    old = values.shape[axis]
    if old == size:
        return values[(slice(None),) * axis + (part,)]
    below, above, weight = samples(old, size)
    first = int(below[part][0])
    # No more than is needed, since ``take`` copies all that it is given where that is a view.
    values = values[(slice(None),) * axis + (slice(first, int(above[part][-1]) + 1),)]
    lower: Array = np.take(values, below[part] - first, axis=axis)
    step: Array = np.take(values, above[part] - first, axis=axis) - lower
    step *= weight[part].reshape((-1,) + (1,) * (values.ndim - axis - 1))
    step += lower
    return step
