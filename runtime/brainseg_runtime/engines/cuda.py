"""Memory and streams of one GPU, through NVIDIA's own bindings; no return code goes unread."""

import ctypes
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from cuda.bindings import runtime
from numpy.typing import NDArray

from brainseg_runtime.errors import BudgetExceeded, EngineUnavailable

__all__ = ["DeviceBuffer", "PinnedArray", "Stream", "checked", "free_bytes", "use"]

Array = NDArray[np.float32]


LACKS_MEMORY = 2
"""Runtime and driver number their errors alike where they mean the same; 0 is none."""


def checked(answer: Sequence[Any]) -> Any:  # noqa: ANN401 - whatever the call gives
    """What a call of the CUDA runtime, or of the driver, gives beside its return code.

    Raises:
        BudgetExceeded: ``E_MEMORY`` where the GPU's, or the pinned, memory does not suffice.
        EngineUnavailable: ``E_ENGINE_FAILED`` for any other code.
    """
    code, *given = answer
    if int(code) == LACKS_MEMORY:
        # The error stays with the runtime until it is asked for, and would be blamed on a later call.
        runtime.cudaGetLastError()
        raise BudgetExceeded(
            "E_MEMORY", "the GPU has too little free memory.", "Give a smaller --batch or --tile."
        )
    if int(code):
        raise EngineUnavailable(
            "E_ENGINE_FAILED", f"CUDA says {code.name} ({int(code)}).", "Check the driver: brainseg doctor."
        )
    return given[0] if len(given) == 1 else tuple(given)


def use(index: int) -> None:
    """Let this thread work on a GPU; every thread has to say it for itself."""
    checked(runtime.cudaSetDevice(index))


def free_bytes() -> int:
    """Free memory of the GPU that this thread works on."""
    free, _ = checked(runtime.cudaMemGetInfo())
    return int(free)


class Stream:
    """Work that is done in order, beside that of other streams."""

    def __init__(self) -> None:
        # The default stream would make TensorRT wait after every call.
        self._stream: Any = checked(runtime.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking))
        self.handle = int(self._stream)

    def upload(self, buffer: "DeviceBuffer", pinned: "PinnedArray") -> None:
        """Copy to the GPU, without waiting."""
        to_device = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        checked(
            runtime.cudaMemcpyAsync(buffer.pointer, pinned.pointer, pinned.bytes, to_device, self._stream)
        )

    def download(self, pinned: "PinnedArray", buffer: "DeviceBuffer") -> None:
        """Copy from the GPU, without waiting."""
        to_host = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        checked(runtime.cudaMemcpyAsync(pinned.pointer, buffer.pointer, pinned.bytes, to_host, self._stream))

    def write(self, address: int, array: NDArray[np.generic]) -> None:
        """Copy an array without gaps to the GPU, and wait: the array's memory may change then."""
        to_device = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        checked(runtime.cudaMemcpyAsync(address, array.ctypes.data, array.nbytes, to_device, self._stream))
        self.wait()

    def read(self, array: NDArray[np.generic], address: int) -> None:
        """Fill an array without gaps from the GPU, and wait."""
        to_host = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        checked(runtime.cudaMemcpyAsync(array.ctypes.data, address, array.nbytes, to_host, self._stream))
        self.wait()

    def clear(self, address: int, size: int) -> None:
        """Set bytes of the GPU to 0, and wait."""
        checked(runtime.cudaMemsetAsync(address, 0, size, self._stream))
        self.wait()

    def wait(self) -> None:
        """Until all of its work is done; an error of that work arrives here."""
        checked(runtime.cudaStreamSynchronize(self._stream))

    def close(self) -> None:
        """Give the stream back."""
        if self._stream is not None:
            stream, self._stream = self._stream, None
            checked(runtime.cudaStreamDestroy(stream))


class DeviceBuffer:
    """Memory of the GPU that is kept and only ever grows."""

    def __init__(self) -> None:
        self.pointer = 0
        self.bytes = 0

    def reserve(self, size: int) -> None:
        """At least ``size`` bytes; what was in it is lost."""
        if size > self.bytes:
            self.close()
            self.pointer = int(checked(runtime.cudaMalloc(size)))
            self.bytes = size

    def close(self) -> None:
        """Give the memory back."""
        pointer, self.pointer, self.bytes = self.pointer, 0, 0
        if pointer:
            checked(runtime.cudaFree(pointer))


class PinnedArray:
    """Host memory that a GPU copies from and to by itself, seen as a float32 array."""

    def __init__(self) -> None:
        self.pointer = 0
        self.bytes = 0
        self._capacity = 0

    def shaped(self, shape: tuple[int, ...]) -> Array:
        """The memory as an array of this shape; what was in it is lost if it has to grow."""
        self.bytes = 4 * prod(shape)
        if self.bytes > self._capacity:
            needed = self.bytes
            self.close()
            self.pointer = int(checked(runtime.cudaMallocHost(needed)))
            self._capacity = self.bytes = needed
        memory = (ctypes.c_float * prod(shape)).from_address(self.pointer)
        values: Array = np.ctypeslib.as_array(memory)
        return values.reshape(shape)

    def close(self) -> None:
        """Give the memory back; arrays that were made of it must not be touched any more."""
        pointer, self.pointer, self.bytes, self._capacity = self.pointer, 0, 0, 0
        if pointer:
            checked(runtime.cudaFreeHost(pointer))
