"""Cutting a grid into overlapping tiles and blending their logits into one answer."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

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

    @classmethod
    def of(cls, shape: Shape, spec: ModelSpec) -> "Tiling":
        """The spec's tiles over a grid: evenly spread, the overlap at least the spec's."""
        fitting = [-(-n // d) * d for n, d in zip(shape, spec.divisor, strict=True)]
        i, j, k = (min(t, f) for t, f in zip(spec.tile, fitting, strict=True))
        a, b, c = (_starts(n, t, spec.overlap) for n, t in zip(shape, (i, j, k), strict=True))
        return cls(shape, (i, j, k), (a, b, c))

    def weights(self) -> tuple[list[Array], list[Array], list[Array]]:
        """Per axis and tile: the weight of each of the tile's voxels along that axis.

        Gaussian, sigma an eighth of the tile (Isensee et al. 2021), scaled to sum to 1 at every voxel.
        The tiles form a product of three rows, so the weights do too, and nothing is left to divide by.
        """
        a, b, c = (
            _weights(n, t, starts) for n, t, starts in zip(self.shape, self.tile, self.starts, strict=True)
        )
        return a, b, c

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """Which start along each axis, tile after tile."""
        yield from product(*(range(len(starts)) for starts in self.starts))

    def __len__(self) -> int:
        return len(self.starts[0]) * len(self.starts[1]) * len(self.starts[2])


def predict(data: Array, engine: Engine, spec: ModelSpec, batch: int = 1) -> Array:
    """Logits for a whole grid, (i, j, k, C) -> (i, j, k, R).

    Tiles are computed ``batch`` at a time; memory does not grow with their number. Voxels beyond the
    grid are 0, as background is.
    """
    i, j, k, _ = data.shape
    tiling = Tiling.of((i, j, k), spec)
    weights = tiling.weights()
    logits = np.zeros((spec.output_channels, i, j, k), dtype=np.float32)
    places = list(tiling)
    for n in range(0, len(places), batch):
        group = places[n : n + batch]
        tiles = np.zeros((len(group), data.shape[3], *tiling.tile), dtype=np.float32)
        for tile, place in zip(tiles, group, strict=True):
            part = np.moveaxis(data[_inside(tiling, place)], -1, 0)
            tile[:, : part.shape[1], : part.shape[2], : part.shape[3]] = part
        answers = engine.infer(np.moveaxis(tiles, 1, -1))
        for answer, place in zip(answers, group, strict=True):
            inside = _inside(tiling, place)
            target = logits[(slice(None), *inside)]
            wi, wj, wk = (w[at][: s.stop - s.start] for w, at, s in zip(weights, place, inside, strict=True))
            part = np.moveaxis(answer, -1, 0)[:, : len(wi), : len(wj), : len(wk)]
            if len(tiling) == 1:
                target[:] = part
            else:
                target += part * wi[:, None, None] * wj[:, None] * wk
    return np.moveaxis(logits, 0, -1)


def _inside(tiling: Tiling, place: tuple[int, int, int]) -> tuple[slice, slice, slice]:
    """The part of the grid that a tile covers."""
    i, j, k = (
        slice(starts[at], min(starts[at] + t, n))
        for starts, at, t, n in zip(tiling.starts, place, tiling.tile, tiling.shape, strict=True)
    )
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
