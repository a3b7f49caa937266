"""The one place that picks among the engines."""

from importlib.util import find_spec
from typing import Literal, get_args

from brainseg_runtime.bundle import Bundle, Precision
from brainseg_runtime.engines.base import Engine
from brainseg_runtime.errors import BundleInvalid, EngineUnavailable, UsageRefused

__all__ = ["EngineName", "open_engine"]

EngineName = Literal["auto", "ort"]

INSTALL = {"ort": 'pip install "brainseg-runtime[cpu]"'}
"""What a user types to get an engine."""

MODULES = {"ort": "onnxruntime"}
"""The package that an engine stands on."""


def open_engine(
    bundle: Bundle,
    engine: EngineName = "auto",
    *,
    precision: Precision = "fp32",
    device: str = "cpu",
    threads: int | None = None,
) -> Engine:
    """The engine that was asked for, on a bundle's graph; ``auto`` takes the best one installed.

    A named engine is a demand: it is opened or refused, never replaced.

    Raises:
        EngineUnavailable: ``E_ENGINE_MISSING`` with the line that installs it, ``E_ENGINE_DEVICE``.
        BundleInvalid: ``E_UNCERTIFIED`` where the bundle's certificate does not cover the engine, or
            where what it measured misses the bounds.
        UsageRefused: ``E_USAGE`` for an engine that brainseg does not have.
    """
    if engine not in get_args(EngineName):
        raise UsageRefused(
            "E_USAGE",
            f"there is no engine {engine!r}.",
            f"Engines are {', '.join(get_args(EngineName))}.",
        )
    name = "ort" if engine == "auto" else engine
    if find_spec(MODULES[name]) is None:
        raise EngineUnavailable(
            "E_ENGINE_MISSING",
            f"engine {name} needs {MODULES[name]}, which is not installed.",
            f"Install it: {INSTALL[name]}",
        )
    # Imported here so that importing the runtime loads no engine.
    from brainseg_runtime.engines.ort import OrtEngine

    opened = OrtEngine(bundle.graph(precision), bundle.spec, precision, device, threads)
    parity = bundle.certificate.find(bundle.graph_sha256(precision), opened.identity)
    if parity is None or not parity.passed:
        opened.close()
        found = "does not cover" if parity is None else "shows failed parity for"
        raise BundleInvalid(
            "E_UNCERTIFIED",
            f"the certificate of {bundle.folder} {found} {name} in {precision} on {device}.",
            "Use an engine and precision that brainseg-export verify lists as passed.",
        )
    return opened
