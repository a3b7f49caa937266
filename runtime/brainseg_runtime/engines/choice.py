"""The one place that picks among the engines."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal, get_args

from brainseg_runtime.bundle import Bundle, Precision
from brainseg_runtime.engines.base import Engine
from brainseg_runtime.errors import BundleInvalid, EngineUnavailable, UsageRefused
from brainseg_runtime.spec import ModelSpec

__all__ = ["ENGINES", "Choice", "EngineName", "Kind", "choose", "installed", "make_engine", "open_engine"]

EngineName = Literal["auto", "openvino", "ort"]


@dataclass(frozen=True)
class Kind:
    """What stands behind an engine's name."""

    module: str
    """The package that it stands on."""
    install: str
    """What a user types to get it."""
    devices: tuple[str, ...]
    precisions: tuple[Precision, ...]


ENGINES: Mapping[EngineName, Kind] = {
    "openvino": Kind(
        "openvino", 'pip install "brainseg-runtime[openvino]"', ("cpu",), ("fp32", "fp16", "bf16")
    ),
    "ort": Kind("onnxruntime", 'pip install "brainseg-runtime[cpu]"', ("cpu",), ("fp32", "fp16")),
}
"""Every engine, in the order in which ``auto`` prefers them: measured, the fastest first."""


@dataclass(frozen=True)
class Choice:
    """Which engine is to run, and why it is this one."""

    engine: EngineName
    why: str


def choose(
    bundle: Bundle, engine: EngineName = "auto", precision: Precision = "fp32", device: str = "cpu"
) -> Choice:
    """The engine that was named, or for ``auto`` the best one that is installed and certified.

    Raises:
        EngineUnavailable: ``E_ENGINE_MISSING``, ``E_ENGINE_DEVICE`` where ``auto`` finds none.
        BundleInvalid: ``E_UNCERTIFIED`` where those that are installed are not covered.
        UsageRefused: ``E_USAGE`` for an engine that brainseg does not have.
    """
    if engine not in get_args(EngineName):
        raise UsageRefused(
            "E_USAGE",
            f"there is no engine {engine!r}.",
            f"Engines are {', '.join(get_args(EngineName))}.",
        )
    if engine != "auto":
        return Choice(engine, "as asked for")
    fitting = [n for n, kind in ENGINES.items() if device in kind.devices and precision in kind.precisions]
    if not fitting:
        raise EngineUnavailable(
            "E_ENGINE_DEVICE",
            f"no engine runs on device {device!r} in {precision}.",
            "Use --device cpu, or another --precision.",
        )
    against = {name: _objection(bundle, name, precision) for name in fitting}
    able = [name for name, objection in against.items() if not objection]
    if able:
        passed_over = [f"{name} {against[name]}" for name in fitting[: fitting.index(able[0])]]
        return Choice(able[0], "; ".join(passed_over) or "the fastest on this device")
    if not any(map(installed, fitting)):
        raise _missing(fitting[0])
    raise BundleInvalid(
        "E_UNCERTIFIED",
        f"{bundle.folder} in {precision}: {'; '.join(f'{n} {why}' for n, why in against.items())}.",
        _USE_CERTIFIED,
    )


def open_engine(
    bundle: Bundle,
    engine: EngineName = "auto",
    *,
    precision: Precision = "fp32",
    device: str = "cpu",
    threads: int | None = None,
) -> Engine:
    """The engine that was asked for, on a bundle's graph.

    A named engine is a demand: it is opened or refused, never replaced.

    Raises:
        EngineUnavailable: ``E_ENGINE_MISSING`` with the line that installs it, ``E_ENGINE_DEVICE``.
        BundleInvalid: ``E_UNCERTIFIED`` where the bundle's certificate does not cover the engine, or
            where what it measured misses the bounds.
        UsageRefused: ``E_USAGE`` for an engine or a precision that it does not have.
    """
    name = choose(bundle, engine, precision, device).engine
    opened = make_engine(name, bundle.graph(precision), bundle.spec, precision, device, threads)
    parity = bundle.certificate.find(bundle.graph_sha256(precision), opened.identity)
    if parity is None or not parity.passed:
        opened.close()
        found = "does not cover" if parity is None else "shows failed parity for"
        raise BundleInvalid(
            "E_UNCERTIFIED",
            f"the certificate of {bundle.folder} {found} {name} in {precision} on {device}.",
            _USE_CERTIFIED,
        )
    return opened


_USE_CERTIFIED = "Use an engine and precision that brainseg-export verify lists as passed."


def make_engine(
    name: EngineName,
    graph: bytes,
    spec: ModelSpec,
    precision: Precision = "fp32",
    device: str = "cpu",
    threads: int | None = None,
) -> Engine:
    """An engine by its name on any graph, certified or not.

    Raises:
        EngineUnavailable: ``E_ENGINE_MISSING``, ``E_ENGINE_DEVICE``.
        UsageRefused: ``E_USAGE`` for a precision that the engine does not have.
        BundleInvalid: for a graph that does not load, or is not the spec's.
    """
    if not installed(name):
        raise _missing(name)
    if precision not in ENGINES[name].precisions:
        raise UsageRefused(
            "E_USAGE",
            f"engine {name} does not compute in {precision}.",
            f"It has {', '.join(ENGINES[name].precisions)}.",
        )
    # Imported here so that importing the runtime loads no engine.
    if name == "openvino":
        from brainseg_runtime.engines.openvino import OpenvinoEngine

        return OpenvinoEngine(graph, spec, precision, device, threads)
    from brainseg_runtime.engines.ort import OrtEngine

    return OrtEngine(graph, spec, precision, device, threads)


def installed(name: EngineName) -> bool:
    """Whether the package that an engine stands on is there."""
    try:
        return find_spec(ENGINES[name].module) is not None
    except ValueError:  # what find_spec says of a module that was emptied in sys.modules
        return False


def _objection(bundle: Bundle, name: EngineName, precision: Precision) -> str:
    """Why ``auto`` passes an engine over; empty where it does not."""
    if not installed(name):
        return "is not installed"
    measured = bundle.certificate.of(bundle.graph_sha256(precision), name, precision)
    if not measured:
        return "is not covered by the bundle's certificate"
    return "" if any(parity.passed for parity in measured) else "failed parity in the bundle's certificate"


def _missing(name: EngineName) -> EngineUnavailable:
    kind = ENGINES[name]
    return EngineUnavailable(
        "E_ENGINE_MISSING",
        f"engine {name} needs {kind.module}, which is not installed.",
        f"Install it: {kind.install}",
    )
