"""The one place that picks among the engines."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from operator import itemgetter
from typing import Literal, get_args

from brainseg_runtime.bundle import Bundle, Precision
from brainseg_runtime.engines.base import Engine
from brainseg_runtime.errors import BundleInvalid, EngineUnavailable, UsageRefused
from brainseg_runtime.extras import there
from brainseg_runtime.gpu import Gpu, find
from brainseg_runtime.plans import flavour as flavours
from brainseg_runtime.spec import ModelSpec

__all__ = [
    "ENGINES",
    "Choice",
    "EngineName",
    "Kind",
    "choose",
    "default_device",
    "installed",
    "make_engine",
    "open_engine",
]

EngineName = Literal["auto", "openvino", "ort", "trt"]


@dataclass(frozen=True)
class Kind:
    """What stands behind an engine's name."""

    modules: tuple[tuple[str, ...], ...]
    """Packages that it can stand on: one set of them is enough."""
    install: Mapping[str, str]
    """Kind of device that it runs on -> what a user types to have it there."""
    precisions: tuple[Precision, ...]
    """What it computes in; the first where nobody says it."""

    def runs_on(self, device: str) -> bool:
        """Whether a device, such as ``"cuda:0"``, is of a kind that it has."""
        return device.partition(":")[0] in self.install

    def line(self, device: str) -> str:
        """What a user types to have it on a device, or on the first it has."""
        return self.install.get(device.partition(":")[0]) or next(iter(self.install.values()))


ENGINES: Mapping[EngineName, Kind] = {
    "trt": Kind(
        (
            ("tensorrt_rtx", "cuda.bindings"),
            ("tensorrt", "cuda.bindings"),
            ("tensorrt_lean_libs", "tensorrt_lean_bindings", "cuda.bindings"),
        ),
        {"cuda": 'pip install "brainseg-runtime[rtx]", or [trt] for an A100, H100, H200 or B200'},
        # FP16 is what TensorRT is taken for.
        ("fp16", "fp32"),
    ),
    "openvino": Kind(
        (("openvino",),), {"cpu": 'pip install "brainseg-runtime[openvino]"'}, ("fp32", "fp16", "bf16")
    ),
    "ort": Kind(
        (("onnxruntime",),),
        {
            "cpu": 'pip install "brainseg-runtime[cpu]"',
            "cuda": 'pip uninstall -y onnxruntime && pip install "brainseg-runtime[gpu]"',
        },
        ("fp32", "fp16"),
    ),
}
"""Every engine, in the order in which ``auto`` prefers them on a device: on CPUs measured, fastest first."""


@dataclass(frozen=True)
class Choice:
    """Which engine is to run, in what, and why it is this one."""

    engine: EngineName
    precision: Precision
    why: str


def choose(
    bundle: Bundle, engine: EngineName = "auto", precision: Precision | None = None, device: str = "cpu"
) -> Choice:
    """The engine that was named, or for ``auto`` the best one that is installed and certified.

    Without a ``precision`` it is each engine's own.

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
        return Choice(engine, precision or ENGINES[engine].precisions[0], "as asked for")
    able_in = {n: precision or kind.precisions[0] for n, kind in ENGINES.items() if kind.runs_on(device)}
    fitting = {name: one for name, one in able_in.items() if one in ENGINES[name].precisions}
    if not fitting:
        raise EngineUnavailable(
            "E_ENGINE_DEVICE",
            f"no engine runs on device {device!r}{f' in {precision}' if precision else ''}.",
            "Use --device cpu, or another --precision.",
        )
    gpu = None if device == "cpu" else find(device)
    against = {name: _objection(bundle, name, one, gpu) for name, one in fitting.items()}
    able = [name for name, objection in against.items() if not objection]
    if able:
        passed_over = [f"{name} {why}" for name, why in takewhile(itemgetter(1), against.items())]
        best = "the fastest on this device" if gpu is None else "the one made for this device"
        return Choice(able[0], fitting[able[0]], "; ".join(passed_over) or best)
    if not any(map(installed, fitting)):
        require_installed(next(iter(fitting)), device)
    raise BundleInvalid(
        "E_UNCERTIFIED",
        f"{bundle.folder}: {'; '.join(f'{n} in {fitting[n]} {why}' for n, why in against.items())}.",
        _USE_CERTIFIED,
    )


def open_engine(
    bundle: Bundle,
    engine: EngineName = "auto",
    *,
    precision: Precision | None = None,
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
    choice = choose(bundle, engine, precision, device)
    name, precision = choice.engine, choice.precision
    opened = make_engine(name, bundle.graph(precision), bundle.spec, precision, device, threads)
    parity = bundle.certificate.find(bundle.graph_sha256(precision), opened.identity)
    gpu = device != "cpu" and covered(bundle, name, precision, device)
    if not (gpu if parity is None else parity.passed):
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
    require_installed(name, device)
    if not ENGINES[name].runs_on(device):
        raise EngineUnavailable(
            "E_ENGINE_DEVICE",
            f"engine {name} does not run on device {device!r}.",
            f"Use --device {' or '.join(_DEVICES[kind] for kind in ENGINES[name].install)}.",
        )
    require_precision(name, precision)
    # Imported here so that importing the runtime loads no engine.
    if name == "openvino":
        from brainseg_runtime.engines.openvino import OpenvinoEngine

        return OpenvinoEngine(graph, spec, precision, device, threads)
    if name == "trt":
        # The driver is asked before anything of TensorRT is touched.
        gpu = find(device)
        flavours.choose(gpu)
        from brainseg_runtime.engines.trt import TrtEngine

        return TrtEngine(graph, spec, precision, gpu)
    from brainseg_runtime.engines.ort import OrtEngine

    return OrtEngine(graph, spec, precision, device, threads)


def installed(name: EngineName) -> bool:
    """Whether packages that an engine can stand on are there."""
    return any(all(map(there, modules)) for modules in ENGINES[name].modules)


def default_device(name: EngineName) -> str:
    """Where an engine computes if nobody says it: on the CPU, if it can."""
    return "cpu" if name == "auto" or ENGINES[name].runs_on("cpu") else "cuda:0"


_DEVICES = {"cpu": "cpu", "cuda": "cuda:0"}


def _objection(bundle: Bundle, name: EngineName, precision: Precision, gpu: Gpu | None) -> str:
    """Why ``auto`` passes an engine over; empty where it does not."""
    if not installed(name):
        return "is not installed"
    if name == "trt" and gpu and not any(map(flavours.installed, flavours.fitting(gpu.capability))):
        return f"has no TensorRT installed that runs on {gpu.name}"
    device = "cpu" if gpu is None else gpu.device
    if covered(bundle, name, precision, device):
        return ""
    measured = bundle.certificate.of(bundle.graph_sha256(precision), name, precision)
    return f"{'failed parity in' if measured else 'is not covered by'} the bundle's certificate"


def covered(bundle: Bundle, name: EngineName, precision: Precision, device: str) -> bool:
    """Whether a bundle's certificate lets an engine run on a kind of device.

    On a CPU it must have been measured, and passed. GPUs, drivers and plans are as many as machines, so no
    certificate can list them: there it must show that this very graph is right, on any engine, and that this
    GPU computes it, the known answer shows at every load.
    """
    digest = bundle.graph_sha256(precision)
    return any(
        parity.passed
        for parity in bundle.certificate.parities
        if (parity.graph_sha256, parity.identity.precision) == (digest, precision)
        and (device != "cpu" or (parity.identity.engine, parity.identity.device) == (name, "cpu"))
    )


def require_precision(name: EngineName, precision: Precision) -> None:
    """Refuse a precision that an engine does not compute in, ``E_USAGE``."""
    if precision not in ENGINES[name].precisions:
        raise UsageRefused(
            "E_USAGE",
            f"engine {name} does not compute in {precision}.",
            f"It has {', '.join(ENGINES[name].precisions)}.",
        )


def require_installed(name: EngineName, device: str) -> None:
    """Refuse an engine whose packages are not there, ``E_ENGINE_MISSING`` with the line that installs it."""
    kind = ENGINES[name]
    if not installed(name):
        needs = " or ".join(" with ".join(modules) for modules in kind.modules)
        raise EngineUnavailable(
            "E_ENGINE_MISSING",
            f"engine {name} needs {needs}, which is not installed.",
            f"Install it: {kind.line(device)}",
        )
