"""What every engine is: tiles in, logits out, and an honest word about where they were computed."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from brainseg_runtime.errors import EngineUnavailable

__all__ = ["DeviceEngine", "Engine", "EngineIdentity", "finite", "not_finite"]


@dataclass(frozen=True)
class EngineIdentity:
    """What an engine really runs on, as found after it was opened, not as it was asked for."""

    engine: str
    """``"ort"``, ``"openvino"``, ``"keras"``, ..."""
    provider: str
    """The engine's own name for what computes, such as ``"CPUExecutionProvider"``."""
    device: str
    """``"cpu"`` or ``"cuda:0"``."""
    precision: str
    """``"fp32"``, ``"fp16"`` or ``"bf16"``."""
    version: str
    """Of the engine's package."""


class Engine(Protocol):
    """Computes a network on a batch of tiles.

    Float32 stands on both sides of the border, whatever an engine computes in.
    """

    @property
    def identity(self) -> EngineIdentity:
        """What the engine really runs on."""
        ...

    def infer(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of a batch of tiles.

        Shapes: (N, i, j, k, C) -> (N, i, j, k, R), channels last; i, j, k multiples of the
        spec's divisor.

        Raises:
            EngineUnavailable: ``E_ENGINE_FAILED`` when the computation fails, gives values that
                are not finite, or the engine was closed.
        """
        ...

    def close(self) -> None:
        """Give back what the engine holds; closing twice does nothing."""
        ...


@runtime_checkable
class DeviceEngine(Engine, Protocol):
    """An engine that also takes tiles from the memory of its device, and leaves the logits there."""

    def infer_at(self, tiles: int, logits: int, shape: tuple[int, ...]) -> None:
        """Logits of tiles that lie at an address, to another address; they are there when it returns.

        ``shape`` is that of the tiles, (N, C, i, j, k), and (N, R, i, j, k) comes out: channels first,
        float32, no gaps. Nothing looks at the logits: whoever takes them must see that they are finite.

        Raises:
            BudgetExceeded: ``E_MEMORY`` where the device lacks memory.
            EngineUnavailable: ``E_ENGINE_FAILED`` when the computation fails, or the engine was closed.
        """
        ...


def finite(logits: NDArray[np.float32], identity: EngineIdentity) -> NDArray[np.float32]:
    """The logits, if they are numbers: an overflow must never become a mask.

    Raises:
        EngineUnavailable: ``E_ENGINE_FAILED`` for NaN or infinite values.
    """
    # A sum is NaN or infinite as soon as one term is, and needs no array of booleans.
    with np.errstate(invalid="ignore"):
        total = logits.sum(dtype=np.float64)
    if not np.isfinite(total):
        raise not_finite(identity)
    return logits


def not_finite(identity: EngineIdentity) -> EngineUnavailable:
    """The error for logits that are NaN or infinite, ``E_ENGINE_FAILED``."""
    return EngineUnavailable(
        "E_ENGINE_FAILED",
        f"engine {identity.engine} on {identity.device} in {identity.precision} gave NaN or infinite logits.",
        "Use --precision fp32, and report the model and the scan's intensities.",
    )
