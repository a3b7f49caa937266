"""The contract of engines: one test that every engine passes."""

import sys

import numpy as np
import pytest
from brainseg_runtime.engines.choice import open_engine
from brainseg_runtime.engines.ort import OrtEngine
from brainseg_runtime.errors import BundleInvalid, EngineUnavailable, UsageRefused
from toys import toy_bundle, toy_certificate, toy_engine, toy_graph, toy_spec

SPEC = toy_spec()

ENGINES = {
    "function": lambda: toy_engine(SPEC),
    "ort": lambda: OrtEngine(toy_graph(SPEC), SPEC, "fp32"),
    "ort one thread": lambda: OrtEngine(toy_graph(SPEC), SPEC, "fp32", threads=1),
}
TOLERANCE = {"fp32": 1e-4, "fp16": 1e-1}


@pytest.fixture(params=ENGINES, ids=str)
def engine(request):
    """An engine on the toy network."""
    opened = ENGINES[request.param]()
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


def test_a_closed_session_computes_nothing():
    """After close an engine refuses, and closing again is harmless."""
    engine = ENGINES["ort"]()
    engine.close()
    engine.close()
    with pytest.raises(EngineUnavailable, match="closed"):
        engine.infer(tiles())


def test_an_engine_that_cannot_run_is_refused_and_not_replaced(tmp_path, monkeypatch):
    """Another device, an absent package and an unknown name are each an error with a remedy."""
    bundle = toy_bundle(tmp_path / "toy")
    with pytest.raises(EngineUnavailable, match="E_ENGINE_DEVICE"):
        open_engine(bundle, "ort", device="cuda:0")
    with pytest.raises(UsageRefused, match="E_USAGE"):
        open_engine(bundle, "abacus")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineUnavailable, match=r"pip install .brainseg-runtime\[cpu\]"):
        open_engine(bundle, "ort")


def test_what_the_certificate_does_not_cover_does_not_run(tmp_path):
    """No measurement, or one beyond the bounds, and the engine stays shut."""
    bundle = toy_bundle(tmp_path / "toy")
    open_engine(bundle).close()
    with pytest.raises(BundleInvalid, match=r"E_UNCERTIFIED.*does not cover"):
        open_engine(bundle, precision="fp16")
    failed = toy_certificate(toy_graph(SPEC), logits=2e-3).to_json().encode()
    bundle = toy_bundle(tmp_path / "failed", **{"certificate.json": failed})
    with pytest.raises(BundleInvalid, match=r"E_UNCERTIFIED.*failed parity"):
        open_engine(bundle)


def test_a_graph_that_is_not_the_specs_is_refused():
    """Bytes that are no graph, or whose tensors are named otherwise, do not load."""
    with pytest.raises(BundleInvalid, match="E_BUNDLE_DAMAGED"):
        OrtEngine(b"not a graph", SPEC, "fp32")
    with pytest.raises(BundleInvalid, match="E_SPEC"):
        OrtEngine(toy_graph(SPEC), toy_spec(input_name="other"), "fp32")


def test_an_engine_leaves_the_callers_arithmetic_alone():
    """Opening and running an engine does not flush the host program's denormal numbers to zero."""
    engine = ENGINES["ort"]()
    engine.infer(tiles())
    assert np.float32(1e-40) * np.float32(0.5) > 0
