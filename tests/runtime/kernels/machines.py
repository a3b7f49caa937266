"""Where kernels run: their source on a CPU, or the PTX that ships on a GPU; the same verbs for both."""

import ctypes
import subprocess
from pathlib import Path

import numpy as np
from brainseg_runtime import kernels
from brainseg_runtime.kernels.steps import Blend, Decide, Foreground, Gather

FOLDER = Path(kernels.__file__).parent
STRUCTURES = {"foreground": Foreground, "gather": Gather, "blend": Blend, "decide": Decide}
THREADS = 256


class Cpu:
    """The very source, as C, one thread after the other."""

    def __init__(self, compiler, folder):
        made, shim = folder / "kernels.so", Path(__file__).parent / "on_cpu.c"
        # -ffp-contract=off is to a C compiler what --fmad=false is to NVIDIA's.
        flags = ["-O2", "-ffp-contract=off", "-shared", "-fPIC", "-Wall", "-Werror", "-Wno-unused-variable"]
        subprocess.run([compiler, *flags, f"-I{FOLDER}", "-o", made, shim], check=True)
        self._library = ctypes.CDLL(str(made))
        self._arrays = {}

    def put(self, array):
        """The address of a copy of an array."""
        copy = np.array(array, order="C")
        self._arrays[copy.ctypes.data] = copy
        return copy.ctypes.data

    def get(self, address, array):
        """What stands at an address now; ``array`` says its shape and type."""
        assert self._arrays[address].shape == array.shape
        return self._arrays[address]

    def run(self, name, arguments, threads):
        """Every thread of a kernel."""
        kernel = getattr(self._library, f"run_{name}")
        kernel.argtypes, kernel.restype = [STRUCTURES[name], ctypes.c_longlong], None
        kernel(arguments, threads)


class GpuMachine:
    """The PTX that ships, on the first GPU."""

    def __init__(self):
        from cuda.bindings import driver

        self._driver = driver
        self._done(driver.cuInit(0))
        device = self._done(driver.cuDeviceGet(0))
        self._done(driver.cuCtxSetCurrent(self._done(driver.cuDevicePrimaryCtxRetain(device))))
        self._module = self._done(driver.cuModuleLoadData((FOLDER / "scan.ptx").read_bytes() + b"\0"))

    def put(self, array):
        """The address on the GPU of a copy of an array."""
        copy = np.array(array, order="C")
        address = self._done(self._driver.cuMemAlloc(max(1, copy.nbytes)))
        self._done(self._driver.cuMemcpyHtoD(address, copy.ctypes.data, copy.nbytes))
        return int(address)

    def get(self, address, array):
        """What stands at an address now; ``array`` says its shape and type."""
        found = np.empty_like(array, order="C")
        self._done(self._driver.cuMemcpyDtoH(found.ctypes.data, address, found.nbytes))
        return found

    def run(self, name, arguments, threads):
        """A kernel, to its end."""
        kernel = self._done(self._driver.cuModuleGetFunction(self._module, name.encode()))
        told = np.array([ctypes.addressof(arguments)], dtype=np.uint64)
        blocks = -(-threads // THREADS)
        self._done(
            self._driver.cuLaunchKernel(kernel, blocks, 1, 1, THREADS, 1, 1, 0, 0, told.ctypes.data, 0)
        )
        self._done(self._driver.cuCtxSynchronize())

    def _done(self, answer):
        code, *given = answer
        assert int(code) == 0, code
        return given[0] if given else None
