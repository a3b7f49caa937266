"""Several answers to one tile, averaged: of mirrored copies of it, of several networks, or of both."""

from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from brainseg_runtime.engines.base import Engine, EngineIdentity
from brainseg_runtime.spec import ModelSpec

__all__ = ["MeanEngine", "mirrors_of"]

Tiles = NDArray[np.float32]
Axes = tuple[int, ...]
"""Of tiles (N, i, j, k, C): those that are mirrored."""


class MeanEngine:
    """The mean of the logits of several engines on one tile and its mirror images.

    Logits are averaged, as nnU-Net averages mirror images (Isensee et al. 2021).
    """

    def __init__(self, engines: Sequence[Engine], mirrors: Sequence[Axes] = ((),)) -> None:
        """``mirrors`` has no axes for a tile as it is; the engines are closed with this one."""
        self._engines = tuple(engines)
        self._mirrors = tuple(mirrors)

    @property
    def members(self) -> int:
        """How many engines are averaged."""
        return len(self._engines)

    @property
    def identity(self) -> EngineIdentity:
        """That of the first engine; all are of one kind."""
        return self._engines[0].identity

    def each(self, wrap: Callable[[Engine], Engine]) -> "MeanEngine":
        """The same mean of the same engines, each of them wrapped."""
        return MeanEngine([wrap(engine) for engine in self._engines], self._mirrors)

    def infer(self, tiles: Tiles) -> Tiles:
        """Logits of a batch of tiles, (N, i, j, k, C) -> (N, i, j, k, R)."""
        total: Tiles | None = None
        for engine in self._engines:
            for axes in self._mirrors:
                logits = np.flip(engine.infer(np.flip(tiles, axes)), axes)
                total = logits.copy() if total is None else np.add(total, logits, out=total)
        assert total is not None
        total /= np.float32(len(self._engines) * len(self._mirrors))
        return total

    def close(self) -> None:
        """Close every engine."""
        for engine in self._engines:
            engine.close()


def mirrors_of(spec: ModelSpec) -> tuple[Axes, ...]:
    """A tile as it is and every mirror image: 8 in three dimensions, 4 for networks that see slices."""
    axes = [1 + axis for axis in range(3) if not (spec.thin and spec.divisor[axis] == 1)]
    return tuple(chosen for count in range(len(axes) + 1) for chosen in combinations(axes, count))
