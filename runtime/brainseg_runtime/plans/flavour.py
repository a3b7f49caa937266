"""Which TensorRT: the one for workstations, the one for data centres, or the lean one, which only runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Literal, cast

from brainseg_runtime.errors import EngineUnavailable
from brainseg_runtime.extras import there
from brainseg_runtime.gpu import Gpu
from brainseg_runtime.plans.api import TensorRT

__all__ = ["FLAVOURS", "RTX_TARGETS", "Flavour", "FlavourName", "choose", "fitting", "installed", "load"]

FlavourName = Literal["rtx", "tensorrt", "lean"]

WORKSTATION = frozenset({(7, 5), (8, 6), (8, 9), (12, 0), (12, 1)})
"""Compute capabilities that TensorRT-RTX is made for: GeForce and RTX cards from Turing to Blackwell."""

RTX_TARGETS = WORKSTATION | {(8, 0)}
"""All that TensorRT-RTX 1.7 can be told to build for: no H100, H200 or B200."""


@dataclass(frozen=True)
class Flavour:
    """A TensorRT library: one interface, three packages."""

    name: FlavourName
    title: str
    modules: tuple[str, ...]
    """Imported in this order; the last one is the interface."""
    install: str
    """What a user types to get it."""
    builds: bool = True


FLAVOURS: Mapping[FlavourName, Flavour] = {
    "rtx": Flavour("rtx", "TensorRT-RTX", ("tensorrt_rtx",), 'pip install "brainseg-runtime[rtx]"'),
    "tensorrt": Flavour("tensorrt", "TensorRT", ("tensorrt",), 'pip install "brainseg-runtime[trt]"'),
    "lean": Flavour(
        "lean",
        "TensorRT lean",
        ("tensorrt_lean_libs", "tensorrt_lean_bindings"),
        'pip install "brainseg-runtime[lean]"',
        builds=False,
    ),
}


def fitting(capability: tuple[int, int]) -> tuple[Flavour, ...]:
    """What runs on GPUs of a compute capability, the best first."""
    rtx, full, lean = FLAVOURS["rtx"], FLAVOURS["tensorrt"], FLAVOURS["lean"]
    if capability in WORKSTATION:
        return rtx, full, lean
    return (full, lean, rtx) if capability in RTX_TARGETS else (full, lean)


def installed(flavour: Flavour) -> bool:
    """Whether a flavour's packages are there."""
    return all(map(there, flavour.modules))


def choose(gpu: Gpu) -> Flavour:
    """The best flavour for a GPU of those that are installed.

    Raises:
        EngineUnavailable: ``E_ENGINE_MISSING`` with the line that installs the best one.
    """
    able = fitting(gpu.capability)
    for flavour in able:
        if installed(flavour):
            return flavour
    capability = "{}.{}".format(*gpu.capability)
    raise EngineUnavailable(
        "E_ENGINE_MISSING",
        f"engine trt on {gpu.name} (compute capability {capability}) needs "
        f"{' or '.join(flavour.title for flavour in able)}, not installed here.",
        f"Install it: {able[0].install}",
    )


def load(flavour: Flavour) -> TensorRT:
    """Import a flavour.

    Raises:
        EngineUnavailable: ``E_ENGINE_MISSING`` where it is not installed, or does not load.
    """
    try:
        modules = [import_module(name) for name in flavour.modules]
    # A native package can fail in any way at all when it is loaded.
    except Exception as error:
        raise EngineUnavailable(
            "E_ENGINE_MISSING",
            f"{flavour.title} cannot be loaded: {error}.",
            f"Install it: {flavour.install}",
        ) from error
    return cast(TensorRT, modules[-1])
