"""An image from one grid onto another, through the patient's space."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainseg_runtime.errors import ScanRefused
from brainseg_runtime.geometry import Affine, Geometry
from brainseg_runtime.registration import Motion, register

__all__ = ["GRID_MM", "Moved", "background", "bring", "record_of", "resample"]

Voxels = NDArray[np.float32]

GRID_MM = 0.1
"""How far apart equal corners of two grids may lie that count as one."""
MIN_COVERED = 0.5
"""Share of a grid below which a modality does not show the same part of the head."""
FULL_COVERED = 0.99

SLAB_VOXELS = 1 << 18
"""Voxels that are interpolated at a time; bounds the memory."""
MIN_SHARE = 0.02


@dataclass(frozen=True)
class Moved:
    """A modality that was resampled."""

    modality: str
    source: Geometry
    covered: float
    """Share of the target's voxels inside the source's field of view."""
    motion: Motion | None = None
    """How it was registered, if it was."""


def bring(
    decode: Callable[[Voxels], None],
    source: Geometry,
    target: Geometry,
    out: Voxels,
    modality: str,
    onto: Voxels | None = None,
) -> Moved | None:
    """Decode an image on ``source`` straight into ``out``, or resample it there if the grids differ.

    It is registered first where an image on ``target`` is given for it to lie on.

    Raises:
        ScanRefused: ``E_GEOMETRY_MISMATCH`` where it covers less than half of the target;
            ``E_REGISTRATION``.
    """
    if onto is None and source.distance(target) <= GRID_MM:
        decode(out)
        return None
    image = np.empty(source.shape, np.float32, order="F")
    decode(image)
    motion = None if onto is None else register(image, source, onto, target, modality)
    placed = source.moved(motion.matrix) if motion and motion.moves else source
    covered = resample(image, placed, target, out)
    if covered < MIN_COVERED:
        raise ScanRefused(
            "E_GEOMETRY_MISMATCH",
            f"{modality} covers only {covered:.0%} of the grid that it is resampled onto.",
            "Choose another grid with --resample-to, or give images of the same part of the head.",
        )
    return Moved(modality, source, covered, motion)


def record_of(moved: Sequence[Moved | None]) -> dict[str, Any]:
    """What a scan's JSON says of resampling, warnings included."""
    done = [one for one in moved if one is not None]
    return {
        "resampled": {
            one.modality: {
                "from_shape": list(one.source.shape),
                "from_spacing_mm": [round(mm, 4) for mm in one.source.spacing],
                "interpolation": "linear",
                "covered": round(one.covered, 4),
                **({"registered": one.motion.record()} if one.motion else {}),
            }
            for one in done
        },
        "warnings": [
            f"{one.modality} covers only {one.covered:.0%} of the grid that it was resampled onto"
            for one in done
            if one.covered < FULL_COVERED
        ],
    }


def resample(data: Voxels, source: Geometry, target: Geometry, out: Voxels) -> float:
    """Interpolate (I, J, K) on ``source`` linearly into ``out`` (I', J', K') on ``target``.

    Gives the share of the target's voxels that lie inside the source's field of view; the others get
    the source's background. Where the target is coarser nothing is smoothed first.
    """
    step = np.linalg.inv(source.affine) @ target.affine
    flat = data.ravel(order="F")
    empty = background(data)
    thick = max(1, SLAB_VOXELS // (target.shape[0] * target.shape[1]))

    def fill(first: int) -> int:
        return _slab(flat, source.shape, step, out[:, :, first : first + thick], first, empty)

    # Gathering and arithmetic leave Python, so that two threads take little more than half of one's time.
    with ThreadPoolExecutor(max_workers=2, thread_name_prefix="resample") as pool:
        inside = sum(pool.map(fill, range(0, target.shape[2], thick)))
    return inside / out.size


def background(data: Voxels) -> np.float32:
    """The value around the head: the most frequent one, or the smallest where hardly any repeats."""
    sample = data[::3, ::3, ::3]
    values, counts = np.unique(sample, return_counts=True)
    most = int(counts.argmax())
    return np.float32(values[most] if counts[most] >= MIN_SHARE * sample.size else values[0])


def _slab(
    flat: Voxels, shape: tuple[int, int, int], step: Affine, out: Voxels, first: int, empty: np.float32
) -> int:
    """Fill planes of the target from ``first`` on, and count its voxels inside the source."""
    i, j, k = (np.arange(n, dtype=np.float64) for n in out.shape)
    k += first
    covered = np.ones(out.shape, dtype=bool)
    below, weights = [], []
    for axis, size in enumerate(shape):
        place = (
            (step[axis, 0] * i)[:, None, None]
            + (step[axis, 1] * j)[:, None]
            + (step[axis, 2] * k + step[axis, 3])
        )
        # Voxels are cells: half a voxel beyond the outermost centre still is image.
        covered &= (place >= -0.5 - 1e-6) & (place <= size - 0.5 + 1e-6)
        np.clip(place, 0, size - 1, out=place)
        low = np.minimum(place.astype(np.int32), size - 2)
        below.append(low)
        weights.append((place - low).astype(np.float32))
    start = below[0] + shape[0] * (below[1] + shape[1] * below[2].astype(np.intp))
    out[...] = _interpolate(flat, start, weights, shape)
    out[~covered] = empty
    return int(np.count_nonzero(covered))


def _interpolate(
    flat: Voxels, start: NDArray[np.intp], weights: list[Voxels], shape: tuple[int, int, int]
) -> Voxels:
    """Linear along each axis between the voxels at ``start`` and their upper neighbours."""
    offsets = (1, shape[0], shape[0] * shape[1])

    def along(axis: int, at: NDArray[np.intp]) -> Voxels:
        if axis < 0:
            return flat.take(at)
        lower = along(axis - 1, at)
        upper = along(axis - 1, at + offsets[axis])
        upper -= lower
        upper *= weights[axis]
        upper += lower
        return upper

    return along(2, start)
