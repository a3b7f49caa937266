"""Which GPUs are here, asked of the driver before anything that needs one is touched.

TensorRT's runtime does not fail without a driver: it ends the process. So the driver is asked first, through
its own C interface, which needs no package.
"""

import ctypes
import sys
from dataclasses import dataclass
from functools import cache

from brainseg_runtime.errors import EngineUnavailable, UsageRefused

__all__ = ["Gpu", "NoDriver", "find", "free_memory", "gpus"]

DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
MANAGEMENT = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"

MAJOR, MINOR = 75, 76
"""The driver's numbers for the two halves of a GPU's compute capability."""


@dataclass(frozen=True)
class Gpu:
    """A GPU and the driver that it runs under."""

    index: int
    name: str
    capability: tuple[int, int]
    """Compute capability: (8, 9) is Ada, (9, 0) Hopper."""
    memory: int
    """Bytes in all."""
    driver: str

    @property
    def device(self) -> str:
        """As an option names it, such as ``"cuda:0"``."""
        return f"cuda:{self.index}"


class NoDriver(Exception):
    """There is no NVIDIA driver, or it finds no GPU."""


def find(device: str) -> Gpu:
    """The GPU that an option names, such as ``"cuda:0"``.

    Raises:
        UsageRefused: ``E_USAGE`` for a word that names no GPU.
        EngineUnavailable: ``E_ENGINE_DEVICE`` without a driver, or for a number that no GPU has.
    """
    kind, _, number = device.partition(":")
    if kind != "cuda" or not (number or "0").isdecimal():
        raise UsageRefused("E_USAGE", f"{device!r} names no GPU.", "Use --device cuda:0.")
    try:
        found = gpus()
    except NoDriver as error:
        raise EngineUnavailable(
            "E_ENGINE_DEVICE",
            f"device {device} is not here: {error}.",
            'Install the NVIDIA driver (Ubuntu: "sudo ubuntu-drivers install"), or use --device cpu.',
        ) from error
    index = int(number or 0)
    if index >= len(found):
        names = ", ".join(f"{gpu.device} ({gpu.name})" for gpu in found)
        raise EngineUnavailable(
            "E_ENGINE_DEVICE", f"there is no device {device}.", f"There are: {names or 'none'}."
        )
    return found[index]


@cache
def gpus() -> tuple[Gpu, ...]:
    """Every GPU of this machine, in the driver's order; no context is made on any.

    Raises:
        NoDriver: in words, why there is none.
    """
    try:
        cuda = ctypes.CDLL(DRIVER)
    except OSError:
        raise NoDriver(f"no NVIDIA driver ({DRIVER} is not found)") from None
    count, version = ctypes.c_int(), ctypes.c_int()
    answers = (
        cuda.cuInit(0),
        cuda.cuDeviceGetCount(ctypes.byref(count)),
        cuda.cuDriverGetVersion(ctypes.byref(version)),
    )
    for done in answers:
        if done:
            raise NoDriver(f"the NVIDIA driver answers with error {done}")
    if not count.value:
        raise NoDriver("the NVIDIA driver finds no GPU")
    driver = _driver_version() or f"CUDA {version.value // 1000}.{version.value % 1000 // 10}"
    return tuple(_gpu(cuda, index, driver) for index in range(count.value))


def free_memory(gpu: Gpu) -> int:
    """Bytes that are free on a GPU now.

    Raises:
        EngineUnavailable: ``E_ENGINE_DEVICE`` where the driver does not say.
    """
    cuda, device = ctypes.CDLL(DRIVER), ctypes.c_int()
    context, ignored = ctypes.c_void_p(), ctypes.c_void_p()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    # The primary context is the one that every engine shares; memory is counted within a context only.
    failed = cuda.cuDeviceGet(ctypes.byref(device), gpu.index) or cuda.cuDevicePrimaryCtxRetain(
        ctypes.byref(context), device
    )
    if not failed:
        failed = cuda.cuCtxPushCurrent_v2(context)
        if not failed:
            failed = cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
            cuda.cuCtxPopCurrent_v2(ctypes.byref(ignored))
        cuda.cuDevicePrimaryCtxRelease_v2(device)
    if failed:
        raise EngineUnavailable(
            "E_ENGINE_DEVICE", f"the driver does not tell the memory of {gpu.device}: {failed}.", "Check it."
        )
    return free.value


def _gpu(cuda: ctypes.CDLL, index: int, driver: str) -> Gpu:
    device, name, memory = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
    major, minor = ctypes.c_int(), ctypes.c_int()
    answers = (
        cuda.cuDeviceGet(ctypes.byref(device), index),
        cuda.cuDeviceGetName(name, len(name), device),
        cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device),
        cuda.cuDeviceGetAttribute(ctypes.byref(major), MAJOR, device),
        cuda.cuDeviceGetAttribute(ctypes.byref(minor), MINOR, device),
    )
    if any(answers):
        raise NoDriver(f"the NVIDIA driver answers with errors {answers} for GPU {index}")
    capability = major.value, minor.value
    return Gpu(index, name.value.decode(errors="replace"), capability, memory.value, driver)


def _driver_version() -> str:
    """Such as ``"580.65.06"``, where NVIDIA's management library is there to tell it."""
    try:
        management = ctypes.CDLL(MANAGEMENT)
    except OSError:
        return ""
    if management.nvmlInit_v2():
        return ""
    version = ctypes.create_string_buffer(96)
    failed = management.nvmlSystemGetDriverVersion(version, len(version))
    management.nvmlShutdown()
    return "" if failed else version.value.decode(errors="replace")
