"""The known answer that a bundle carries: a small tile of a real scan, and what Keras makes of it."""

from collections.abc import Sequence

import numpy as np
from brainseg_runtime.bundle import Golden
from brainseg_runtime.engines.base import Engine
from brainseg_runtime.labels import decide
from brainseg_runtime.spec import ModelSpec
from numpy.typing import NDArray

from brainseg_export.parity import Reference

__all__ = ["choose", "tile_shape"]

SMALLEST, LARGEST = 32, 64
"""Voxels along an axis, where the network's divisor lets one choose."""


def choose(references: Sequence[Reference], keras: Engine, spec: ModelSpec) -> Golden:
    """The golden tile: the place where most regions lie together, its logits computed by Keras anew.

    The tile is rounded to FP16 first, so that the logits belong to the very numbers that are stored.
    """
    candidates = [(reference, corner) for reference in references for corner in _corners(reference, spec)]
    reference, corner = max(candidates, key=lambda candidate: _richness(candidate[0], candidate[1], spec))
    data = reference.prepared.data[_box(corner, tile_shape(spec))]
    tile = np.zeros((*tile_shape(spec), data.shape[-1]), dtype=np.float32)
    tile[tuple(slice(size) for size in data.shape[:3])] = data
    tile = tile.astype(np.float16).astype(np.float32)
    return Golden(tile, keras.infer(tile[None])[0])


def tile_shape(spec: ModelSpec) -> tuple[int, int, int]:
    """(i, j, k) of the golden tile: where possible more than one voxel at the network's deepest level."""
    i, j, k = (
        min(tile, max(divisor, min(LARGEST // divisor, max(2, -(-SMALLEST // divisor))) * divisor))
        for tile, divisor in zip(spec.tile, spec.divisor, strict=True)
    )
    return i, j, k


def _corners(reference: Reference, spec: ModelSpec) -> list[tuple[int, ...]]:
    """First voxels of tiles about the middle of each region, on the network's grid."""
    labels = decide(reference.logits, spec)
    corners = []
    for region in spec.regions:
        voxels = np.argwhere(np.isin(labels, region.labels))
        if len(voxels) == 0:
            continue
        # The region's voxel next to its centre: the centre itself may lie outside of a ring.
        middle = voxels[np.square(voxels - voxels.mean(axis=0)).sum(axis=1).argmin()]
        corners.append(_corner(middle, labels.shape, tile_shape(spec)))
    return corners


def _corner(middle: NDArray[np.intp], grid: tuple[int, ...], tile: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(max(0, min(int(m) - t // 2, n - t)) for m, n, t in zip(middle, grid, tile, strict=True))


def _box(corner: tuple[int, ...], tile: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(start, start + size) for start, size in zip(corner, tile, strict=True))


def _richness(reference: Reference, corner: tuple[int, ...], spec: ModelSpec) -> tuple[int, int]:
    """How many regions a tile holds, and how much of its rarest one."""
    labels = decide(reference.logits[_box(corner, tile_shape(spec))], spec)
    counts = [int(np.isin(labels, region.labels).sum()) for region in spec.regions]
    return sum(count > 0 for count in counts), min(counts)
