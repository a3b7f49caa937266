"""The contract of engines: one test that every engine passes."""

import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest
from brainseg_runtime.engines.choice import Choice, choose, make_engine, open_engine
from brainseg_runtime.engines.mean import MeanEngine, mirrors_of
from brainseg_runtime.engines.openvino import OpenvinoEngine
from brainseg_runtime.engines.ort import OrtEngine
from brainseg_runtime.errors import BundleInvalid, EngineUnavailable, UsageRefused
from brainseg_runtime.gpu import find
from toys import toy_bundle, toy_certificate, toy_engine, toy_graph, toy_spec

SPEC = toy_spec()

ENGINES = {
    "function": lambda: toy_engine(SPEC),
    "mean": lambda: MeanEngine([toy_engine(SPEC), toy_engine(SPEC)], mirrors_of(SPEC)),
    "ort": lambda: OrtEngine(toy_graph(SPEC), SPEC, "fp32"),
    "ort one thread": lambda: OrtEngine(toy_graph(SPEC), SPEC, "fp32", threads=1),
    "openvino": lambda: OpenvinoEngine(toy_graph(SPEC), SPEC, "fp32"),
    "openvino one thread": lambda: OpenvinoEngine(toy_graph(SPEC), SPEC, "fp32", threads=1),
    "ort on a GPU": lambda: make_engine("ort", toy_graph(SPEC), SPEC, device="cuda:0"),
    "trt": lambda: make_engine("trt", toy_graph(SPEC), SPEC, device="cuda:0"),
}
ON_GPUS = ("ort on a GPU", "trt")
SESSIONS = {"ort": OrtEngine, "openvino": OpenvinoEngine}
TOLERANCE = {"fp32": 1e-4, "fp16": 1e-1}


@pytest.fixture(params=ENGINES, ids=str)
def engine(request, monkeypatch, tmp_path):
    """An engine on the toy network."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # where plans for a GPU are kept
    try:
        opened = ENGINES[request.param]()
    except EngineUnavailable as error:
        if request.param not in ON_GPUS or error.code not in ("E_ENGINE_DEVICE", "E_ENGINE_MISSING"):
            raise
        pytest.skip(str(error))
    yield opened
    opened.close()


def tiles(n=2, shape=(8, 4, 12), seed=0):
    return np.random.default_rng(seed).normal(size=(n, *shape, 4)).astype(np.float32)


def test_logits_are_those_of_the_network(engine):
    """Every engine computes the network, within its precision, in float32 and channels last."""
    data = tiles()
    logits = engine.infer(data)
    assert logits.shape == (2, 8, 4, 12, 3)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(
        logits, toy_engine(SPEC).infer(data), atol=TOLERANCE[engine.identity.precision]
    )


def test_shape_and_batch_may_change_from_call_to_call(engine):
    """A ragged last batch or another tile size needs no new engine, and tiles do not mix."""
    data = tiles(3)
    whole = engine.infer(data)
    for n in range(3):
        np.testing.assert_allclose(engine.infer(data[n : n + 1])[0], whole[n], atol=1e-5)
    assert engine.infer(tiles(1, (16, 8, 4))).shape == (1, 16, 8, 4, 3)


def test_the_same_tile_gives_the_same_bits(engine):
    """An engine has no memory and no chance in it."""
    np.testing.assert_array_equal(engine.infer(tiles()), engine.infer(tiles()))


def test_any_memory_layout_is_read_right(engine):
    """A view with other strides is the same tiles."""
    data = tiles()
    strided = np.moveaxis(np.ascontiguousarray(np.moveaxis(data, -1, 1)), 1, -1)
    np.testing.assert_array_equal(engine.infer(data), engine.infer(strided))
    np.testing.assert_array_equal(engine.infer(data[:, ::-1])[:, ::-1], engine.infer(data))


def test_an_overflow_is_an_error_and_never_a_mask(engine):
    """NaN or infinite logits are refused."""
    data = tiles()
    data[0, 0, 0, 0, 0] = np.inf
    with pytest.raises(EngineUnavailable, match="E_ENGINE_FAILED"):
        engine.infer(data)


def test_an_engine_says_what_it_runs_on(engine):
    """Identity is complete."""
    assert all(vars(engine.identity).values())


@pytest.mark.parametrize("name", SESSIONS)
def test_a_closed_session_computes_nothing(name):
    """After close an engine refuses, and closing again is harmless."""
    engine = ENGINES[name]()
    engine.close()
    engine.close()
    with pytest.raises(EngineUnavailable, match="closed"):
        engine.infer(tiles())


def test_an_engine_that_cannot_run_is_refused_and_not_replaced(tmp_path, monkeypatch):
    """Another device, an absent package and an unknown name are each an error with a remedy."""
    bundle = toy_bundle(tmp_path / "toy")
    for name, device in (("openvino", "cuda:0"), ("trt", "cpu"), ("ort", "abacus"), ("auto", "abacus")):
        with pytest.raises(EngineUnavailable, match="E_ENGINE_DEVICE"):
            open_engine(bundle, name, device=device)
    with pytest.raises(UsageRefused, match="E_USAGE"):
        open_engine(bundle, "abacus")
    with pytest.raises(UsageRefused, match=r"E_USAGE.*bf16"):
        open_engine(bundle, "ort", precision="bf16")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(EngineUnavailable, match=r"pip install .brainseg-runtime\[openvino\]"):
        open_engine(bundle, "openvino")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineUnavailable, match=r"pip install .brainseg-runtime\[cpu\]"):
        open_engine(bundle, "ort")
    with pytest.raises(EngineUnavailable, match="E_ENGINE_MISSING"):
        open_engine(bundle, "auto")


def test_auto_takes_the_fastest_that_is_installed_and_certified_and_says_why(tmp_path, monkeypatch):
    """OpenVINO where it may run; else ONNX Runtime, with the reason."""
    bundle = toy_bundle(tmp_path / "both")
    assert choose(bundle) == Choice("openvino", "fp32", "the fastest on this device")
    assert choose(bundle, "ort") == Choice("ort", "fp32", "as asked for")
    only = toy_certificate(toy_graph(SPEC), engines=("ort",)).to_json().encode()
    half = toy_bundle(tmp_path / "ort", **{"certificate.json": only})
    assert choose(half) == Choice("ort", "fp32", "openvino is not covered by the bundle's certificate")
    with pytest.raises(BundleInvalid, match=r"E_UNCERTIFIED.*does not cover openvino"):
        open_engine(half, "openvino")
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert choose(bundle) == Choice("ort", "fp32", "openvino is not installed")
    assert open_engine(bundle).identity.engine == "ort"


def test_tensorrt_computes_in_fp16_and_the_others_in_fp32_where_nobody_says_it(tmp_path):
    """A precision that is named is taken, whatever the engine."""
    bundle = toy_bundle(tmp_path / "toy")
    assert {name: choose(bundle, name).precision for name in ("trt", "ort", "openvino")} == {
        "trt": "fp16",
        "ort": "fp32",
        "openvino": "fp32",
    }
    assert choose(bundle, "trt", "fp32").precision == "fp32"
    assert choose(bundle, "ort", "fp16").precision == "fp16"


def test_openvino_computes_in_what_it_was_told(tmp_path):
    """FP32 to the last bit of a product that bfloat16 would round, whatever this CPU prefers."""
    data = np.full((1, 4, 4, 4, 4), 1.00390625 + 2.0**-20, np.float32)
    expected = toy_engine(SPEC).infer(data)
    np.testing.assert_allclose(ENGINES["openvino"]().infer(data), expected, rtol=2e-6)


def test_what_the_certificate_does_not_cover_does_not_run(tmp_path):
    """No measurement, or one beyond the bounds, and the engine stays shut."""
    bundle = toy_bundle(tmp_path / "toy")
    open_engine(bundle).close()
    with pytest.raises(BundleInvalid, match=r"E_UNCERTIFIED.*not covered"):
        open_engine(bundle, precision="fp16")
    failed = toy_certificate(toy_graph(SPEC), logits=2e-3).to_json().encode()
    bundle = toy_bundle(tmp_path / "failed", **{"certificate.json": failed})
    with pytest.raises(BundleInvalid, match=r"E_UNCERTIFIED.*failed parity"):
        open_engine(bundle)


@pytest.mark.parametrize("session", SESSIONS.values(), ids=SESSIONS)
def test_a_graph_that_is_not_the_specs_is_refused(session):
    """Bytes that are no graph, or whose tensors are named otherwise, do not load."""
    with pytest.raises(BundleInvalid, match="E_BUNDLE_DAMAGED"):
        session(b"not a graph", SPEC, "fp32")
    with pytest.raises(BundleInvalid, match="E_SPEC"):
        session(toy_graph(SPEC), toy_spec(input_name="other"), "fp32")


@pytest.mark.parametrize("name", ON_GPUS)
def test_tiles_in_the_gpus_memory_give_what_tiles_by_value_give(name, monkeypatch, tmp_path):
    """The same bits, for one tile and for several, whatever was computed before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        opened = ENGINES[name]()
    except EngineUnavailable as error:
        pytest.skip(str(error))
    pytest.importorskip("cuda.bindings.driver")
    from brainseg_runtime.kernels.cuda_card import CudaCard
    from brainseg_runtime.kernels.proof import Fetching
    from brainseg_runtime.resident import Resident

    with closing(opened), closing(CudaCard(find("cuda:0"))) as card:
        fetching = Fetching(Resident(opened, card), SPEC.output_channels)
        for data in (tiles(1), tiles(4), tiles(9), tiles(1, (16, 8, 4)), tiles(1)):
            np.testing.assert_array_equal(fetching.infer(data), opened.infer(data))


def test_an_engine_leaves_the_callers_arithmetic_alone(engine):
    """Opening and running an engine does not flush the host program's denormal numbers to zero."""
    engine.infer(tiles())
    assert np.float32(1e-40) * np.float32(0.5) > 0


def test_nothing_is_sent_anywhere(tmp_path):
    """Loading a model and computing with each engine opens no connection and asks for no address."""
    toy_bundle(tmp_path / "toy")
    code = f"""
import socket, sys
def refuse(*arguments, **more):
    print("network:", arguments[1:])
    raise OSError("no network")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
import numpy as np
from brainseg_runtime.bundle import Bundle
from brainseg_runtime.engines.openvino import OpenvinoEngine
from brainseg_runtime.engines.ort import OrtEngine
bundle = Bundle.open({str(tmp_path / "toy")!r})
for kind in (OpenvinoEngine, OrtEngine):
    kind(bundle.graph("fp32"), bundle.spec, "fp32").infer(np.zeros((1, 8, 8, 8, 4), np.float32))
import time
time.sleep(1)
print("telemetry" if "openvino_telemetry" in sys.modules else "silent")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "silent\n"), done.stdout + done.stderr
