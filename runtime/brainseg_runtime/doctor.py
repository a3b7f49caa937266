"""What is installed, what runs here, and what is missing, with the line that installs it."""

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from brainseg_runtime.engines.choice import ENGINES, EngineName, Kind, default_device
from brainseg_runtime.extras import there
from brainseg_runtime.gpu import Gpu, NoDriver, gpus
from brainseg_runtime.memory import MEGABYTE, machine_memory
from brainseg_runtime.plans import flavour as flavours

__all__ = ["Finding", "examine", "exit_status"]

PACKAGES = ("brainseg-runtime", "numpy", "nibabel", "isal", "typer")

EXTRAS = {
    "model": ("brainseg-glioma", "a model where none is named"),
    "report": ("pillow", "pictures"),
    "dicom": ("pydicom", "DICOM in and out"),
    "register": ("simpleitk", "--register"),
    "trust": ("cryptography", "signatures of bundles"),
}
"""Extra -> the package that shows whether it is there, and what it is for."""

PAIR = ("onnxruntime", "onnxruntime-gpu")
"""Two packages that install into one folder: whichever came first is gone, and pip says all is well."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    state: Literal["ok", "absent", "broken"]
    what: str
    detail: str


def examine() -> Iterator[Finding]:
    """Look at the machine, the packages, and every engine."""
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    yield Finding("ok", "machine", f"{system}, {_cores()} cores, {machine_memory() // MEGABYTE} MB")
    yield from _gpus()
    for package in PACKAGES:
        yield Finding("ok", package, str(_version(package)))
    if all(map(_version, PAIR)):
        yield Finding(
            "broken",
            " + ".join(PAIR),
            "installed together they overwrite each other; keep one: pip uninstall -y onnxruntime "
            'onnxruntime-gpu && pip install "brainseg-runtime[cpu]" (or [gpu])',
        )
    for name, kind in ENGINES.items():
        yield _engine(name, kind)
    for extra, (package, purpose) in EXTRAS.items():
        found = _version(package)
        missing = f'for {purpose}: pip install "brainseg-runtime[{extra}]"'
        yield Finding("ok" if found else "absent", f"extra {extra}", found or missing)


def exit_status(findings: list[Finding]) -> int:
    """0 where an engine runs and nothing is broken, else 5."""
    engines = [finding for finding in findings if finding.what.startswith("engine ")]
    works = any(finding.state == "ok" for finding in engines)
    return 0 if works and all(finding.state != "broken" for finding in findings) else 5


def _gpus() -> Iterator[Finding]:
    try:
        for gpu in gpus():
            capability = "{}.{}".format(*gpu.capability)
            memory = f"{gpu.memory // MEGABYTE} MB"
            told = f"{gpu.name}, compute capability {capability}, {memory}, driver {gpu.driver}"
            yield Finding("ok", gpu.device, told)
    except NoDriver as error:
        yield Finding("absent", "cuda:0", str(error))


def _engine(name: EngineName, kind: Kind) -> Finding:
    what, install, here = f"engine {name}", kind.line(default_device(name)), _gpus_here()
    modules = next((modules for modules in kind.modules if all(map(there, modules))), None)
    if name == "trt" and here:
        # Not any of them will do: TensorRT-RTX does not run on data-centre cards.
        able = [flavour for gpu in here for flavour in flavours.fitting(gpu.capability)]
        install, flavour = able[0].install, next(filter(flavours.installed, able), None)
        if modules and flavour is None:
            return Finding("absent", what, f"{modules[0]} does not run on {here[0].name}: {install}")
        modules = (*flavour.modules, "cuda.bindings") if modules and flavour else None
    if modules is None:
        return Finding("absent", what, install)
    # A native package can fail in any way at all when it is loaded.
    try:
        loaded = [import_module(module) for module in modules]
        found = next(str(m.__version__) for m in loaded if hasattr(m, "__version__")).split("-")[0]
    except Exception as error:  # noqa: BLE001
        again = install.replace("install", "install --force-reinstall")
        return Finding("broken", what, f"{type(error).__name__}: {error}; install it anew: {again}")
    if default_device(name) != "cpu" and not here:
        return Finding("absent", what, f"{modules[0]} {found} is installed, but there is no GPU for it")
    return Finding("ok", what, found)


def _gpus_here() -> tuple[Gpu, ...]:
    try:
        return gpus()
    except NoDriver:
        return ()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
