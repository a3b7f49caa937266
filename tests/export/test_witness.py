"""tf2onnx reads the same function out of a model as the walker does."""

import keras
import numpy as np
import onnx
import pytest
from brainseg_export.graph import ALLOWED_OPS, check_domains
from brainseg_export.model import flatten, to_logits
from brainseg_export.walker import walk
from brainseg_export.witness import convert
from brainseg_runtime.engines.ort import OrtEngine
from brainseg_runtime.errors import BundleInvalid
from brainseg_runtime.graph import OPERATORS, check
from keras import layers
from onnx import helper
from toys import toy_spec

from .networks import image, randomise, unet


@pytest.mark.parametrize(("norm", "down"), [("batch", "padded"), ("instance", "same")])
def test_witness_walker_and_keras_agree(norm, down):
    """Three ways to one answer, through one engine, for a size that none of them was told."""
    spec = toy_spec()
    logits = to_logits(unet(spec, norm=norm, down=down, activation="sigmoid"), spec)
    tiles = np.random.default_rng(0).normal(size=(2, 8, 12, 16, 4)).astype(np.float32)
    expected = np.asarray(logits(tiles))
    witness, clean = convert(logits, spec), walk(logits, spec)
    for proto in (witness, clean):
        check(proto.SerializeToString())
        found = OrtEngine(proto.SerializeToString(), spec, "fp32").infer(tiles)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert len(witness.graph.node) > 3 * len(clean.graph.node)


def test_a_layer_that_the_walker_does_not_know_goes_through():
    """That is what --via tf2onnx is for."""
    spec = toy_spec()
    source = image(spec)
    x = layers.LayerNormalization()(layers.Conv3D(6, 3, padding="same")(source))
    logits = flatten(randomise(keras.Model(source, layers.Conv3D(3, 1)(x))), spec)
    tiles = np.random.default_rng(0).normal(size=(1, 4, 8, 4, 4)).astype(np.float32)
    found = OrtEngine(convert(logits, spec).SerializeToString(), spec, "fp32").infer(tiles)
    np.testing.assert_allclose(found, logits(tiles), rtol=1e-4, atol=1e-4)


def test_operators_of_another_domain_are_refused():
    """tf2onnx can leave some and only log it."""
    node = helper.make_node("StatefulPartitionedCall", ["x"], ["y"], domain="ai.onnx.converters.tensorflow")
    model = helper.make_model(helper.make_graph([node], "bad", [], []))
    with pytest.raises(BundleInvalid, match="StatefulPartitionedCall") as caught:
        check_domains(model)
    assert caught.value.code == "E_LAYER"
    unknown = onnx.helper.make_node("NoSuchOperator", ["x"], ["y"])
    with pytest.raises(BundleInvalid, match="NoSuchOperator"):
        check_domains(helper.make_model(helper.make_graph([unknown], "bad", [], [])))


def test_the_runtime_takes_what_the_walker_makes():
    """Its list of operators holds the clean graph's."""
    assert ALLOWED_OPS < OPERATORS
