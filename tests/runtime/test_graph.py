"""What may stand in a graph: a network and its weights, and nothing else."""

import random

import onnx
import pytest
from brainseg_runtime.bundle import Bundle
from brainseg_runtime.errors import BundleInvalid
from brainseg_runtime.graph import OPERATORS, check
from brainseg_runtime.segmenter import load
from hostile.graphs import GOOD, HOSTILE
from mutants import mutate
from onnx import TensorProto
from toys import toy_bundle


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_graph_is_refused_by_its_code(name):
    """Each ends in the one code that names what is wrong with it, whatever an engine would do with it."""
    code, make = HOSTILE[name]
    with pytest.raises(BundleInvalid) as refused:
        check(make())
    assert refused.value.code == code
    assert len(str(refused.value)) < 400


def test_a_graph_is_refused_before_any_engine_sees_it(tmp_path):
    """In a bundle whose every digest is right: by loading it and by taking a graph out of it."""
    code, make = HOSTILE["an endless loop"]
    toy_bundle(tmp_path / "toy", **{"model.onnx": make()})
    with pytest.raises(BundleInvalid, match=code):
        Bundle.open(tmp_path / "toy").graph("fp32")
    toy_bundle(tmp_path / "fp16", **{"model.fp16.onnx": make()})
    with pytest.raises(BundleInvalid, match=code):
        Bundle.open(tmp_path / "fp16").graph("fp16")
    toy_bundle(tmp_path / "evil", **{"model.onnx": HOSTILE["data of a device"][1]()})
    with pytest.raises(BundleInvalid, match=r"E_GRAPH_DATA|E_UNCERTIFIED"):
        load(tmp_path / "evil")


def test_what_is_accepted_is_what_onnx_reads():
    """Of 3000 damaged graphs each is refused, or is one network with data of its own to ONNX too."""
    check(GOOD)
    rng = random.Random(20261126)
    accepted = 0
    for _ in range(3000):
        data = mutate(GOOD, rng)
        try:
            check(data)
        except BundleInvalid:
            continue
        accepted += 1
        model = onnx.load_from_string(data)
        assert {node.op_type for node in model.graph.node} <= OPERATORS
        assert not model.functions
        assert all(t.data_location == TensorProto.DEFAULT for t in model.graph.initializer)
        for tensor in model.graph.initializer:
            onnx.numpy_helper.to_array(tensor)
    assert 100 < accepted < 2500  # weights and names may differ; that is the manifest's to see


def test_operators_are_onnx_own_and_call_nothing():
    """Every allowed operator is in ONNX' own domain, deterministic, and takes no graph as an attribute."""
    schemas = {s.name: s for s in onnx.defs.get_all_schemas() if s.domain == ""}
    for name in OPERATORS:
        kinds = {attribute.type for attribute in schemas[name].attributes.values()}
        assert not kinds & {onnx.defs.OpSchema.AttrType.GRAPH, onnx.defs.OpSchema.AttrType.GRAPHS}, name
    assert not {"Loop", "If", "Scan", "RandomNormal", "ConstantOfShape", "Range", "NonZero"} & OPERATORS
