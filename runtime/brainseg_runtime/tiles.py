"""A grid through a network: in one pass, in slabs that give the same, or in overlapping tiles, blended."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

from brainseg_runtime.engines.base import Engine
from brainseg_runtime.geometry import Shape
from brainseg_runtime.spec import ModelSpec

__all__ = ["Tiling", "predict"]

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Tiling:
    """Tiles of one size that cover a grid, and how much each counts where they overlap."""

    shape: Shape
    """(i, j, k) of the grid."""
    tile: Shape
    """(i, j, k) of every tile; larger than the grid where the network's divisor asks for it."""
    starts: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    """Per axis: the first voxel of each tile."""
    blended: bool = True
    """Whether overlapping tiles are averaged; else each voxel is the answer of the tile around it."""

    @classmethod
    def of(cls, shape: Shape, spec: ModelSpec) -> "Tiling":
        """As the spec says: one tile over everything, or tiles that overlap at least by the spec's share."""
        i, j, k = _fitting(shape, spec)
        if spec.scheme == "tiles":
            i, j, k = (min(t, f) for t, f in zip(spec.tile, (i, j, k), strict=True))
        a, b, c = (_starts(n, t, spec.overlap) for n, t in zip(shape, (i, j, k), strict=True))
        return cls(shape, (i, j, k), (a, b, c))

    @classmethod
    def slabs(cls, shape: Shape, spec: ModelSpec, count: int) -> "Tiling":
        """At most ``count`` tiles along the longest axis, each with the spec's halo on either side.

        They start at multiples of the divisor, so that every voxel meets the network's strides as in the
        whole.
        """
        fitting = _fitting(shape, spec)
        axis = int(np.argmax(fitting))
        length, divisor = fitting[axis], spec.divisor[axis]
        halo = -(-spec.halo // divisor) * divisor
        thick = -(-(length + 2 * halo * (count - 1)) // (count * divisor)) * divisor
        i, j, k = (min(thick, n) if at == axis else n for at, n in enumerate(fitting))
        step = max(divisor, thick - 2 * halo)
        cuts = sorted({min(start, max(0, length - thick)) for start in range(0, step * count, step)})
        a, b, c = (tuple(cuts) if at == axis else (0,) for at in range(3))
        return cls(shape, (i, j, k), (a, b, c), blended=False)

    @property
    def voxels(self) -> int:
        """Voxels of a tile."""
        return self.tile[0] * self.tile[1] * self.tile[2]

    def weights(self) -> tuple[list[Array], list[Array], list[Array]]:
        """Per axis and tile: the weight of each of the tile's voxels along that axis.

        Blended: Gaussian, sigma an eighth of the tile (Isensee et al. 2021), scaled to sum to 1 at every
        voxel; else 1 where a tile is the one that decides, 0 elsewhere. The tiles form a product of three
        rows, so the weights do too, and nothing is left to divide by.
        """
        rule = _weights if self.blended else _seams
        a, b, c = (
            rule(n, t, starts) for n, t, starts in zip(self.shape, self.tile, self.starts, strict=True)
        )
        return a, b, c

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """Which start along each axis, tile after tile."""
        yield from product(*(range(len(starts)) for starts in self.starts))

    def __len__(self) -> int:
        return len(self.starts[0]) * len(self.starts[1]) * len(self.starts[2])


def predict(
    data: Array, engine: Engine, spec: ModelSpec, batch: int = 1, tiling: Tiling | None = None
) -> Array:
    """Logits for a whole grid, (i, j, k, C) -> (i, j, k, R).

    The tiling is the spec's unless another is given. Tiles are computed ``batch`` at a time; memory does
    not grow with their number. Voxels beyond the grid are 0, as background is.
    """
    i, j, k, _ = data.shape
    tiling = tiling or Tiling.of((i, j, k), spec)
    places = list(tiling)
    if len(places) == 1:
        return engine.infer(_tiles(data, tiling, places))[0, :i, :j, :k]
    weights = tiling.weights()
    logits = np.zeros((spec.output_channels, i, j, k), dtype=np.float32)
    for n in range(0, len(places), batch):
        group = places[n : n + batch]
        answers = engine.infer(_tiles(data, tiling, group))
        for answer, place in zip(answers, group, strict=True):
            inside = _inside(tiling, place)
            wi, wj, wk = (w[at][: s.stop - s.start] for w, at, s in zip(weights, place, inside, strict=True))
            part = np.moveaxis(answer, -1, 0)[:, : len(wi), : len(wj), : len(wk)]
            logits[(slice(None), *inside)] += part * wi[:, None, None] * wj[:, None] * wk
    return np.moveaxis(logits, 0, -1)


def _tiles(data: Array, tiling: Tiling, group: list[tuple[int, int, int]]) -> Array:
    """Tiles of a grid, (N, i, j, k, C), channels first in memory; no copy of one that needs no margin."""
    parts = [data[_inside(tiling, place)] for place in group]
    if len(parts) == 1 and parts[0].shape[:3] == tiling.tile:
        return parts[0][None]
    tiles = np.zeros((len(group), data.shape[3], *tiling.tile), dtype=np.float32)
    for tile, part in zip(tiles, parts, strict=True):
        i, j, k, _ = part.shape
        tile[:, :i, :j, :k] = np.moveaxis(part, -1, 0)
    return np.moveaxis(tiles, 1, -1)


def _inside(tiling: Tiling, place: tuple[int, int, int]) -> tuple[slice, slice, slice]:
    """The part of the grid that a tile covers."""
    i, j, k = (
        slice(starts[at], min(starts[at] + t, n))
        for starts, at, t, n in zip(tiling.starts, place, tiling.tile, tiling.shape, strict=True)
    )
    return i, j, k


def _fitting(shape: Shape, spec: ModelSpec) -> Shape:
    """A grid's shape rounded up to what the network takes."""
    i, j, k = (-(-n // d) * d for n, d in zip(shape, spec.divisor, strict=True))
    return i, j, k


def _starts(size: int, tile: int, overlap: float) -> tuple[int, ...]:
    if size <= tile:
        return (0,)
    count = int(np.ceil((size - tile) / (tile * (1.0 - overlap)))) + 1
    return tuple(round(n * (size - tile) / (count - 1)) for n in range(count))


def _weights(size: int, tile: int, starts: tuple[int, ...]) -> list[Array]:
    centred = np.arange(tile) - (tile - 1) / 2
    bell = np.exp(-0.5 * (centred / (tile / 8)) ** 2)
    total = np.zeros(max(size, tile))
    for start in starts:
        total[start : start + tile] += bell
    return [(bell / total[start : start + tile]).astype(np.float32) for start in starts]


def _seams(size: int, tile: int, starts: tuple[int, ...]) -> list[Array]:
    """1 between the middles of a tile's overlaps with its neighbours, 0 elsewhere."""
    seams = [0, *((a + tile + b) // 2 for a, b in pairwise(starts)), max(size, starts[-1] + tile)]
    voxels = np.arange(tile)
    return [
        ((start + voxels >= low) & (start + voxels < high)).astype(np.float32)
        for start, (low, high) in zip(starts, pairwise(seams), strict=True)
    ]
