"""Any function of tiles as an engine: how the trainer runs a Keras model through the deployed pipeline."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from brainseg_runtime.engines.base import EngineIdentity, finite

__all__ = ["FunctionEngine"]

Tiles = NDArray[np.float32]


class FunctionEngine:
    """An engine that calls a function (N, i, j, k, C) -> (N, i, j, k, R)."""

    def __init__(self, function: Callable[[Tiles], Tiles], identity: EngineIdentity) -> None:
        self._function = function
        self._identity = identity

    @property
    def identity(self) -> EngineIdentity:
        """What the caller says that the function runs on."""
        return self._identity

    def infer(self, tiles: Tiles) -> Tiles:
        """Logits of a batch of tiles, (N, i, j, k, C) -> (N, i, j, k, R)."""
        return finite(np.asarray(self._function(tiles), dtype=np.float32), self._identity)

    def close(self) -> None:
        """Nothing is held."""
