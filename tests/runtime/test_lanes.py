"""What the TensorRT engine does with shapes, addresses and memory; a stand-in is in TensorRT's place.

It shows the order of calls and that every tile lands where it belongs, nothing of TensorRT or of a GPU.
"""

import ctypes
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from brainseg_runtime.errors import BudgetExceeded, EngineUnavailable
from brainseg_runtime.gpu import Gpu
from brainseg_runtime.plans.flavour import FLAVOURS
from brainseg_runtime.plans.request import Request, profiles_of
from toys import mixing, toy_engine, toy_spec

pytest.importorskip("cuda.bindings.runtime", reason="the extra rtx is not installed (CI installs it)")

from brainseg_runtime.engines import lane as lane_chapter
from brainseg_runtime.engines import trt as trt_chapter

SPEC = toy_spec(tile=(8, 8, 8))
GPU = Gpu(0, "stand-in", (9, 0), 10**12, "1")


def floats(address, shape):
    """Memory as an array."""
    size = int(np.prod(shape))
    return np.ctypeslib.as_array((ctypes.c_float * size).from_address(address)).reshape(shape)


class Memory:
    """A buffer of the GPU's or pinned memory: here of the process, where it is safe to look at."""

    def __init__(self):
        self.pointer = self.bytes = 0

    def reserve(self, size):
        if size > self.bytes:
            self._held = np.full(size + 256, 251, np.uint8)
            self.pointer, self.bytes = -(-self._held.ctypes.data // 256) * 256, size

    def shaped(self, shape):
        self.reserve(4 * int(np.prod(shape)))
        self.bytes = 4 * int(np.prod(shape))
        return floats(self.pointer, shape)

    def close(self):
        self.pointer = self.bytes = 0


class Stream:
    handle = 7

    def upload(self, buffer, pinned):
        assert pinned.bytes <= buffer.bytes
        ctypes.memmove(buffer.pointer, pinned.pointer, pinned.bytes)

    def download(self, pinned, buffer):
        assert pinned.bytes <= buffer.bytes
        ctypes.memmove(pinned.pointer, buffer.pointer, pinned.bytes)

    def wait(self):
        pass

    def close(self):
        pass


class Context:
    """Computes the toy network from address to address, if it was told all that TensorRT must be told."""

    def __init__(self):
        self.ran = []
        self.shape = self.profile = self.memory = None
        self.at = {}

    def set_optimization_profile_async(self, profile, stream):
        self.profile, self.shape, self.memory = profile, None, None
        return True

    def set_input_shape(self, name, shape):
        self.shape, self.memory = shape, None
        return profiles_of(SPEC)[self.profile].holds(shape)

    def infer_shapes(self):
        return []

    def get_tensor_shape(self, name):
        return (self.shape[0], SPEC.output_channels, *self.shape[2:])

    def update_device_memory_size_for_shapes(self):
        return 1000 * self.shape[0]

    def set_device_memory(self, memory, size):
        assert size >= self.update_device_memory_size_for_shapes()
        self.memory = memory

    def set_tensor_address(self, name, memory):
        assert memory % 256 == 0
        self.at[name] = memory
        return True

    def execute_async_v3(self, stream):
        assert self.memory
        tiles = floats(self.at[SPEC.input_name], self.shape)
        logits = np.moveaxis(np.moveaxis(tiles, 1, -1) @ mixing(SPEC), -1, 1)
        floats(self.at[SPEC.output_name], logits.shape)[...] = logits
        self.ran.append(self.shape)
        return True


@pytest.fixture
def engine(monkeypatch):
    """The engine on the toy network."""
    contexts = []

    def context(*_):
        contexts.append(Context())
        return contexts[-1]

    silent = SimpleNamespace(heard=lambda: nullcontext(SimpleNamespace(errors=[])))
    for chapter in (lane_chapter, trt_chapter):
        monkeypatch.setattr(chapter, "logger", lambda trt: silent)
    monkeypatch.setattr(trt_chapter, "use", lambda index: None)
    monkeypatch.setattr(trt_chapter, "_require_tensors", lambda *_: None)
    monkeypatch.setattr(lane_chapter, "Stream", Stream)
    monkeypatch.setattr(lane_chapter, "DeviceBuffer", Memory)
    monkeypatch.setattr(lane_chapter, "PinnedArray", Memory)
    monkeypatch.setattr(lane_chapter, "free_bytes", lambda: engine.free)
    monkeypatch.setattr(lane_chapter, "_context", context)
    flavour = FLAVOURS["tensorrt"]
    request = Request.of(b"", SPEC, "fp32", GPU, flavour, "1")
    trt = SimpleNamespace(
        __version__="1", Runtime=lambda _: SimpleNamespace(deserialize_cuda_engine=lambda plan: object())
    )
    local = SimpleNamespace(plan=b"", request=request, flavour=flavour, trt=trt)
    monkeypatch.setattr(trt_chapter, "plan_for", lambda *_: local)
    engine = trt_chapter.TrtEngine(b"", SPEC, "fp32", GPU)
    engine.contexts, engine.free = contexts, 10**9
    yield engine
    engine.close()


def tiles(count, shape=(8, 8, 8)):
    return np.random.default_rng(count).normal(size=(count, *shape, 4)).astype(np.float32)


def at_addresses(engine, data, shift=0):
    """Logits by way of memory that is named by its address."""
    given, found = Memory(), Memory()
    given.reserve(data.nbytes + shift)
    out = (len(data), SPEC.output_channels, *data.shape[1:4])
    found.reserve(4 * int(np.prod(out)))
    channels_first = np.ascontiguousarray(np.moveaxis(data, -1, 1))
    floats(given.pointer + shift, channels_first.shape)[...] = channels_first
    engine.infer_at(given.pointer + shift, found.pointer, channels_first.shape)
    return np.moveaxis(floats(found.pointer, out), 1, -1).copy()


def test_every_tile_lands_where_it_belongs(engine):
    """By value and by address in turn, the same shape and others, batches beyond what the plan takes."""
    expected = toy_engine(SPEC).infer
    for count, shape in ((1, (8, 8, 8)), (9, (8, 8, 8)), (2, (4, 8, 12)), (2, (4, 8, 12)), (5, (8, 8, 8))):
        data = tiles(count, shape)
        for found in (at_addresses(engine, data), engine.infer(data), at_addresses(engine, data)):
            np.testing.assert_allclose(found, expected(data), atol=1e-5)


def test_tiles_at_an_address_go_as_many_at_once_as_the_plan_takes(engine):
    """And need no memory but the context's own."""
    at_addresses(engine, tiles(9))
    first, second = engine.contexts
    assert [shape[0] for shape in first.ran] == [4, 4, 1]
    assert second.ran == []
    assert engine._lanes[0]._device_inputs.bytes == engine._lanes[0]._device_outputs.bytes == 0


def test_what_tensorrt_does_not_take_is_refused(engine):
    """Another beginning of a tensor, shapes beyond the plan, a GPU that is full, a closed engine."""
    with pytest.raises(EngineUnavailable, match=r"E_ENGINE_FAILED.*multiples of 256"):
        at_addresses(engine, tiles(1), shift=64)
    with pytest.raises(EngineUnavailable, match=r"E_ENGINE_FAILED.*beyond the plan"):
        at_addresses(engine, tiles(1, (4, 4, 400)))
    engine.free = 10
    with pytest.raises(BudgetExceeded, match="E_MEMORY"):
        at_addresses(engine, tiles(4))
    engine.free = 10**9
    np.testing.assert_allclose(at_addresses(engine, tiles(4)), toy_engine(SPEC).infer(tiles(4)), atol=1e-5)
    engine.close()
    with pytest.raises(EngineUnavailable, match="closed"):
        engine.infer_at(0, 0, (1, 4, 8, 8, 8))
