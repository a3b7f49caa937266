"""A card without a GPU: the kernels' very source, compiled for a CPU."""

import ctypes
import subprocess
from pathlib import Path

import numpy as np
from brainseg_runtime import kernels
from brainseg_runtime.errors import BudgetExceeded
from brainseg_runtime.kernels.steps import Blend, Check, Count, Decide, Foreground, Gather

FOLDER = Path(kernels.__file__).parent
STRUCTURES = {
    "foreground": Foreground,
    "gather": Gather,
    "check": Check,
    "blend": Blend,
    "decide": Decide,
    "count": Count,
}

SPECS = {
    "tiles": {},
    "whole head": {"scheme": "whole", "divisor": (8, 8, 8)},
    "another spacing": {"spacing": (1.3, 0.8, 2.0)},
    "intensities as they are": {"normalisation": "none"},
    "softmax": {"activation": "softmax", "channels": (0, 1, 2, 3)},
    "types": {"types": ("glioma", "meningioma")},
    "tiles that hardly overlap": {"tile": (8, 8, 8), "overlap": 0.1},
}
"""Of models that differ in what kernels are told."""

# -ffp-contract=off is to a C compiler what --fmad=false is to NVIDIA's.
FLAGS = ["-ffp-contract=off", "-shared", "-fPIC", "-Wall", "-Werror", "-Wno-unused-variable"]


def compile_kernels(compiler, made, *flags):
    """A shared library of the kernels, one C function each."""
    shim = Path(__file__).parent / "on_cpu.c"
    subprocess.run([compiler, *FLAGS, *flags, f"-I{FOLDER}", "-o", made, shim], check=True)
    return made


class Cpu:
    """A ``Card``; it runs one thread after the other. It has a limit, in bytes, to run out of."""

    def __init__(self, library, limit=10**12):
        self._library = ctypes.CDLL(str(library))
        self._arrays = {}
        self.limit = limit
        self.most = 0
        """Bytes held at once, so far."""

    @property
    def held(self):
        return sum(array.nbytes for array in self._arrays.values())

    def zeros(self, size):
        return self._keep(np.zeros(size, np.uint8))

    def put(self, array):
        return self._keep(np.array(array, order="C"))

    def write(self, address, array):
        assert self._arrays[address].nbytes >= array.nbytes
        dense = np.ascontiguousarray(array)
        ctypes.memmove(address, dense.ctypes.data, dense.nbytes)

    def get(self, address, shape, dtype):
        found = np.empty(shape, dtype)
        assert self._arrays[address].nbytes >= found.nbytes
        ctypes.memmove(found.ctypes.data, address, found.nbytes)
        return found

    def run(self, name, arguments, threads):
        # As many as a GPU would start: whole blocks, of which some threads have nothing to do.
        self.run_exactly(name, arguments, -(-threads // 256) * 256)

    def run_exactly(self, name, arguments, threads):
        kernel = getattr(self._library, f"run_{name}")
        kernel.argtypes, kernel.restype = [STRUCTURES[name], ctypes.c_longlong], None
        kernel(arguments, threads)

    def begin(self):
        self._arrays.clear()

    def give_back(self):
        self._arrays.clear()

    def close(self):
        self._arrays.clear()

    def _keep(self, array):
        if self.held + array.nbytes > self.limit:
            raise BudgetExceeded("E_MEMORY", "the card is full.", "Give a smaller --batch.")
        self._arrays[array.ctypes.data] = array
        self.most = max(self.most, self.held)
        return array.ctypes.data
