"""The kernels on a GPU: the PTX that ships, beside the engine in one context."""

import ctypes
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from cuda.bindings import driver
from numpy.typing import NDArray

from brainseg_runtime.engines.cuda import DeviceBuffer, Stream, checked, use
from brainseg_runtime.errors import BrainsegError
from brainseg_runtime.gpu import Gpu

__all__ = ["PTX", "CudaCard"]

PTX = Path(__file__).with_name("scan.ptx")

THREADS = 256
"""Of a block."""

Scalar = TypeVar("Scalar", bound=np.generic)


class CudaCard:
    """A ``Card`` that is a GPU, in the CUDA runtime's own context, which the engines compute in too."""

    def __init__(self, gpu: Gpu) -> None:
        """Have the driver compile the PTX for this GPU.

        Raises:
            EngineUnavailable: ``E_ENGINE_FAILED``.
        """
        use(gpu.index)
        self._gpu = gpu
        # The n-th memory that a scan asks for is that of the n-th buffer: scans ask in one order.
        self._buffers: list[DeviceBuffer] = []
        self._taken = 0
        self._module: Any = checked(driver.cuModuleLoadData(PTX.read_bytes() + b"\0"))
        self._stream = Stream()

    def zeros(self, size: int) -> int:
        """The address of so many bytes, all 0; ``E_MEMORY`` where the GPU lacks them."""
        address = self._room(size)
        self._stream.clear(address, size)
        return address

    def put(self, array: NDArray[np.generic]) -> int:
        """The address of an array's copy, in C order; ``E_MEMORY`` where the GPU lacks room."""
        address = self._room(array.nbytes)
        self.write(address, array)
        return address

    def write(self, address: int, array: NDArray[np.generic]) -> None:
        """Copy an array, in C order, to an address."""
        use(self._gpu.index)
        self._stream.write(address, np.ascontiguousarray(array))

    def get(self, address: int, shape: tuple[int, ...], dtype: type[Scalar]) -> NDArray[Scalar]:
        """A copy of the array at an address."""
        use(self._gpu.index)
        found: NDArray[Scalar] = np.empty(shape, dtype=dtype)
        self._stream.read(found, address)
        return found

    def run(self, name: str, arguments: ctypes.Structure, threads: int) -> None:
        """One kernel, to its end, so that an error of its own arrives here."""
        use(self._gpu.index)
        kernel = checked(driver.cuModuleGetFunction(self._module, name.encode()))
        # The driver copies the structure while it is called; both must live until then.
        told = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        blocks, stream = -(-threads // THREADS), driver.CUstream(self._stream.handle)
        checked(
            driver.cuLaunchKernel(kernel, blocks, 1, 1, THREADS, 1, 1, 0, stream, ctypes.addressof(told), 0)
        )
        self._stream.wait()

    def begin(self) -> None:
        """Every address so far is done with; its memory is kept, and used again."""
        self._taken = 0

    def give_back(self) -> None:
        """Every address so far is done with, and all memory is given back."""
        use(self._gpu.index)
        self._taken = 0
        while self._buffers:
            self._buffers.pop().close()

    def close(self) -> None:
        """Give back memory, kernels and stream."""
        # A GPU that failed refuses this, too; what it failed with was said when it did.
        with suppress(BrainsegError):
            self.give_back()
        with suppress(BrainsegError):
            self._stream.close()
        if self._module is not None:
            module, self._module = self._module, None
            with suppress(BrainsegError):
                checked(driver.cuModuleUnload(module))

    def _room(self, size: int) -> int:
        use(self._gpu.index)
        if self._taken == len(self._buffers):
            self._buffers.append(DeviceBuffer())
        buffer = self._buffers[self._taken]
        self._taken += 1
        buffer.reserve(max(size, 1))
        return buffer.pointer
