"""What the card of a GPU asks of CUDA; a stand-in on the CPU is in CUDA's place.

It shows which calls are made with what, that all memory is kept and given back, and that no return code goes
unread; nothing of a GPU. On a machine with one, the other tests of this folder run on the real card.
"""

import ctypes
from types import SimpleNamespace

import numpy as np
import pytest
from brainseg_runtime.errors import BudgetExceeded, EngineUnavailable
from brainseg_runtime.gpu import Gpu
from brainseg_runtime.kernels.proof import Summing
from brainseg_runtime.resident import Resident
from brainseg_runtime.segmenter import Segmenter
from toys import toy_spec, toy_volume

from .machines import FOLDER, STRUCTURES, Cpu

cuda = pytest.importorskip("brainseg_runtime.engines.cuda", reason="the extra rtx is not installed")
cuda_card = pytest.importorskip("brainseg_runtime.kernels.cuda_card")

DONE = cuda.runtime.cudaError_t.cudaSuccess


class Cuda:
    """The calls of the runtime and of the driver that a card makes, on memory of this process."""

    def __init__(self, library):
        self.cpu = Cpu(library)
        self.blocks, self.asked, self.fails = {}, 0, {}
        names = [name for name in dir(self) if name.startswith("cu")]
        constants = ("cudaError_t", "cudaMemcpyKind", "cudaStreamNonBlocking")
        self.runtime = SimpleNamespace(**{name: getattr(cuda.runtime, name) for name in constants})
        self.driver = SimpleNamespace(CUstream=int)
        for name in names:
            home = self.runtime if name.startswith("cuda") else self.driver
            setattr(home, name, self._read(name, getattr(self, name)))

    def _read(self, name, call):
        def called(*arguments):
            if name in self.fails:
                return (self.fails[name], *([None] if name in ("cudaMalloc", "cuModuleLoadData") else []))
            given = call(*arguments)
            return (DONE,) if given is None else (DONE, given)

        return called

    def cudaSetDevice(self, index):  # noqa: N802
        assert index == 0

    def cudaGetLastError(self):  # noqa: N802
        pass

    def cudaStreamCreateWithFlags(self, flags):  # noqa: N802
        return 9

    def cudaStreamSynchronize(self, stream):  # noqa: N802
        assert stream == 9

    def cudaStreamDestroy(self, stream):  # noqa: N802
        assert stream == 9

    def cudaMalloc(self, size):  # noqa: N802
        assert size > 0
        block = np.full(size, 251, np.uint8)
        self.blocks[block.ctypes.data] = block
        self.asked += 1
        return block.ctypes.data

    def cudaFree(self, pointer):  # noqa: N802
        del self.blocks[pointer]

    def cudaMemcpyAsync(self, to, source, size, kind, stream):  # noqa: N802
        there = to if kind == cuda.runtime.cudaMemcpyKind.cudaMemcpyHostToDevice else source
        assert stream == 9
        assert size <= self.blocks[there].nbytes
        ctypes.memmove(to, source, size)

    def cudaMemsetAsync(self, address, value, size, stream):  # noqa: N802
        assert (stream, value) == (9, 0)
        self.blocks[address][:size] = 0

    def cuModuleLoadData(self, image):  # noqa: N802
        assert image == (FOLDER / "scan.ptx").read_bytes() + b"\0"
        return "module"

    def cuModuleUnload(self, module):  # noqa: N802
        assert module == "module"

    def cuModuleGetFunction(self, module, name):  # noqa: N802
        assert f".entry {name.decode()}(" in (FOLDER / "scan.ptx").read_text()
        return name.decode()

    def cuLaunchKernel(self, name, *arguments):  # noqa: N802
        x, y, z, width, height, depth, shared, stream, told, extra = arguments
        assert (y, z, height, depth, shared, stream, extra) == (1, 1, 1, 1, 0, 9, 0)
        first = ctypes.c_void_p.from_address(told).value
        self.cpu.run_exactly(name, STRUCTURES[name].from_address(first), x * width)


@pytest.fixture
def stand_in(library, monkeypatch):
    """CUDA, and a card on it."""
    found = Cuda(library)
    monkeypatch.setattr(cuda, "runtime", found.runtime)
    monkeypatch.setattr(cuda_card, "driver", found.driver)
    return found


GPU = Gpu(0, "stand-in", (9, 0), 10**12, "1")


def test_a_scan_through_the_card_is_that_of_the_host_and_memory_is_kept_and_given_back(stand_in):
    """A second scan of the size asks for no memory; a closed card holds none."""
    spec, card = toy_spec(), cuda_card.CudaCard(GPU)
    engine = Summing(spec, card)
    with (
        Segmenter(spec, engine, gpu_memory=10**12) as host,
        Segmenter(spec, engine, batch=2, gpu_memory=10**12, resident=Resident(engine, card)) as stays,
    ):
        asked = []
        for seed in (0, 1, 0):
            volume = toy_volume(seed=seed)
            expected, found = host.segment(volume), stays.segment(volume)
            np.testing.assert_array_equal(found.labels, expected.labels)
            assert found.record["volume_ranges_ml"] == expected.record["volume_ranges_ml"]
            assert found.record["plan"]["on_gpu"] == "scan, labels come back"
            asked.append(stand_in.asked)
        assert asked[0] == asked[1] == asked[2]
        assert stand_in.blocks
    assert stand_in.blocks == {}
    card.close()


def test_every_answer_of_cuda_is_read(stand_in):
    """Memory that lacks is E_MEMORY, whoever says it; anything else E_ENGINE_FAILED with CUDA's own word."""
    code = cuda.runtime.cudaError_t
    lacks, broken = code.cudaErrorMemoryAllocation, code.cudaErrorIllegalAddress
    card = cuda_card.CudaCard(GPU)
    address, told = card.zeros(1024), STRUCTURES["check"](count=0)
    calls = {
        "cudaSetDevice": lambda: card.zeros(8),
        "cudaMalloc": lambda: card.zeros(8),
        "cudaMemsetAsync": lambda: card.zeros(8),
        "cudaMemcpyAsync": lambda: card.get(address, (4,), np.int32),
        "cudaStreamSynchronize": lambda: card.write(address, np.zeros(4)),
        "cuModuleGetFunction": lambda: card.run("check", told, 1),
        "cuLaunchKernel": lambda: card.run("check", told, 1),
        "cuModuleLoadData": lambda: cuda_card.CudaCard(GPU),
    }
    for name, call in calls.items():
        stand_in.fails = {name: broken}
        with pytest.raises(EngineUnavailable, match=r"E_ENGINE_FAILED.*cudaErrorIllegalAddress"):
            call()
        stand_in.fails = {name: lacks}
        with pytest.raises(BudgetExceeded, match="E_MEMORY"):
            call()
        stand_in.fails = {}
    assert int(cuda_card.checked((DONE, 7))) == 7
    card.give_back()
    assert stand_in.blocks == {}
    stand_in.fails = {"cudaStreamDestroy": broken, "cuModuleUnload": broken}
    card.close()
    card.close()
