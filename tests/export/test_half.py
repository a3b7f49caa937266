"""The FP16 pass: one type a node, FP32 at both ends, nothing rounded that must not be."""

import numpy as np
import onnx
import pytest
from brainseg_export.graph import operators
from brainseg_export.half import to_half
from brainseg_export.model import to_logits
from brainseg_export.walker import walk
from brainseg_export.witness import convert
from brainseg_runtime.engines.ort import OrtEngine
from brainseg_runtime.errors import BundleInvalid
from onnx import TensorProto, helper, numpy_helper, shape_inference
from toys import toy_spec

from .networks import unet

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def graph(weights: dict[str, np.ndarray], *nodes: onnx.NodeProto) -> onnx.ModelProto:
    """A graph x -> y, (N, 2, i, j, k)."""
    shape = ["N", 2, "i", "j", "k"]
    return helper.make_model(
        helper.make_graph(
            nodes,
            "test",
            [helper.make_tensor_value_info("x", FLOAT, shape)],
            [helper.make_tensor_value_info("y", FLOAT, shape)],
            [numpy_helper.from_array(values, name) for name, values in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=8,
    )


def types(model: onnx.ModelProto) -> dict[str, int]:
    """Every tensor's type."""
    inferred = shape_inference.infer_shapes(model, strict_mode=True).graph
    values = [*inferred.input, *inferred.value_info, *inferred.output]
    return {
        **{value.name: value.type.tensor_type.elem_type for value in values},
        **{weight.name: weight.data_type for weight in inferred.initializer},
    }


WEIGHT = np.ones((2, 2, 1, 1, 1), np.float32)
SCALE = np.ones(2, np.float32)


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("up", ["transpose", "nearest"])
def test_no_node_sees_two_float_types(norm, up):
    """Only a Resize's scales are FP32 beside FP16; input and output of the graph are FP32."""
    spec = toy_spec()
    half = to_half(walk(to_logits(unet(spec, norm=norm, up=up), spec), spec))
    known = types(half)
    for node in half.graph.node:
        inputs = node.input[:1] if node.op_type == "Resize" else node.input
        if node.op_type != "Cast":
            expected = FLOAT if node.op_type == "InstanceNormalization" else HALF
            assert {known[name] for name in [*inputs, *node.output]} == {expected}, node.name
    assert known[spec.input_name] == known[spec.output_name] == FLOAT
    assert all(w.data_type == FLOAT for w in half.graph.initializer if w.name.endswith("/scales"))


def test_a_network_without_norms_is_cast_twice():
    """Once in, once out."""
    spec = toy_spec()
    clean = walk(to_logits(unet(spec), spec), spec)
    half = to_half(clean)
    assert operators(half) - operators(clean) == {"Cast": 2}
    assert len(half.SerializeToString()) < 0.6 * len(clean.SerializeToString())


def test_a_tensor_is_cast_once_for_all_who_read_it():
    """Three norms of one tensor share one cast to FP32."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        *(helper.make_node("InstanceNormalization", ["c", "s", "s"], [f"n{n}"]) for n in range(3)),
        helper.make_node("Add", ["n0", "n1"], ["a"]),
        helper.make_node("Add", ["a", "n2"], ["y"]),
    ]
    half = to_half(graph({"w": WEIGHT, "s": SCALE}, *nodes))
    assert operators(half)["Cast"] == 1 + 1 + 3 + 1


def test_norms_are_half_when_asked():
    """norm32=False is for engines that are known to sum in FP32."""
    nodes = [helper.make_node("InstanceNormalization", ["x", "s", "s"], ["y"])]
    assert types(to_half(graph({"s": SCALE}, *nodes)))["s"] == FLOAT
    assert types(to_half(graph({"s": SCALE}, *nodes), norm32=False))["s/fp16"] == HALF


@pytest.mark.parametrize("op", ["Sigmoid", "Softmax"])
def test_a_final_activation_is_computed_in_fp32(op):
    """An inner one is not."""
    nodes = [helper.make_node(op, ["x"], ["inner"]), helper.make_node(op, ["inner"], ["y"])]
    half = to_half(graph({}, *nodes))
    known = types(half)
    activations = [node for node in half.graph.node if node.op_type == op]
    assert [known[node.input[0]] for node in activations] == [HALF, FLOAT]


def test_a_weight_read_in_both_types_is_kept_in_both():
    """And one that nobody reads any more is dropped."""
    nodes = [
        helper.make_node("InstanceNormalization", ["x", "s", "s"], ["n"]),
        helper.make_node("PRelu", ["n", "p"], ["r"]),
        helper.make_node("InstanceNormalization", ["r", "p0", "s"], ["y"]),
    ]
    slope = np.full((2, 1, 1, 1), 0.1, np.float32)
    half = to_half(graph({"s": SCALE, "p": slope, "p0": SCALE * 2, "unused": SCALE}, *nodes))
    assert {w.name: w.data_type for w in half.graph.initializer} == {"s": FLOAT, "p/fp16": HALF, "p0": FLOAT}


def test_an_output_that_is_also_read_inside_is_read_in_its_own_type():
    """The cast back to FP32 stands before whoever reads it."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"]),
        helper.make_node("InstanceNormalization", ["y", "s", "s"], ["unread"]),
    ]
    half = to_half(graph({"w": WEIGHT, "s": SCALE}, *nodes))
    assert [node.op_type for node in half.graph.node] == ["Cast", "Conv", "Cast", "InstanceNormalization"]


@pytest.mark.parametrize("value", [65504.0, -7e4, np.inf, np.nan])
def test_a_weight_beyond_fp16_is_refused_by_name(value):
    """It would become infinite in silence."""
    weight = WEIGHT.copy()
    weight[0, 1] = value
    with pytest.raises(BundleInvalid, match="'stem/kernel'") as caught:
        to_half(graph({"stem/kernel": weight}, helper.make_node("Conv", ["x", "stem/kernel"], ["y"])))
    assert caught.value.code == "E_MODEL"


def test_graphs_of_tf2onnx_become_half_too():
    """Whatever they hold: what is not known to be safe stays FP32, whole numbers stay whole."""
    spec = toy_spec()
    logits = to_logits(unet(spec, norm="instance", up="nearest"), spec)
    witness = convert(logits, spec)
    tiles = np.random.default_rng(0).normal(size=(1, 8, 8, 12, 4)).astype(np.float32)
    expected = OrtEngine(witness.SerializeToString(), spec, "fp32").infer(tiles)
    found = OrtEngine(to_half(witness).SerializeToString(), spec, "fp16").infer(tiles)
    np.testing.assert_allclose(found, expected, atol=3e-2)
    assert np.abs(found - expected).max() > 0
