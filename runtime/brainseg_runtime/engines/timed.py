"""An engine that is given only so much time."""

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from brainseg_runtime.engines.base import Engine, EngineIdentity
from brainseg_runtime.errors import BudgetExceeded

__all__ = ["Deadline", "TimedEngine"]


@dataclass(frozen=True)
class Deadline:
    """A moment, and whom it was set."""

    until: float
    """On the clock of ``time.perf_counter``."""
    what: str
    """For whom the time was meant."""
    seconds: float
    """How much it was in all."""

    def require(self) -> None:
        """See that the moment has not passed.

        Raises:
            BudgetExceeded: ``E_TIMEOUT``.
        """
        if time.perf_counter() > self.until:
            raise BudgetExceeded(
                "E_TIMEOUT",
                f"{self.what} took more than its {self.seconds:g} seconds.",
                "Raise --timeout, or compute less: no --tta, the model's own scheme.",
            )


@dataclass(frozen=True)
class TimedEngine:
    """Another engine, until a moment; what it has begun it ends, since no engine can be stopped halfway."""

    engine: Engine
    deadline: Deadline

    @property
    def identity(self) -> EngineIdentity:
        """The other's."""
        return self.engine.identity

    def infer(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """As the other, (N, i, j, k, C) -> (N, i, j, k, R).

        Raises:
            BudgetExceeded: ``E_TIMEOUT`` before a pass, or after one, that lies beyond the moment.
        """
        self.deadline.require()
        logits = self.engine.infer(tiles)
        self.deadline.require()
        return logits

    def close(self) -> None:
        """As the other."""
        self.engine.close()
