"""Writing an ONNX graph: nodes, weights, names, and what may be in it."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import onnx
from brainseg_runtime.errors import BundleInvalid
from brainseg_runtime.spec import ModelSpec
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

__all__ = [
    "ALLOWED_OPS",
    "IR_VERSION",
    "METADATA",
    "OPSET",
    "GraphWriter",
    "check_allowed",
    "check_domains",
    "checked",
    "operators",
    "stamped",
]

OPSET = 18
IR_VERSION = 8
"""The lowest that opset 18 is defined with, so that older runtimes read the file."""

METADATA = "brainseg.spec"
"""Key of the ONNX metadata under which the spec travels."""

ALLOWED_OPS = frozenset(
    {
        "Conv",
        "ConvTranspose",
        "InstanceNormalization",
        "MaxPool",
        "AveragePool",
        "Resize",
        "Pad",
        "Concat",
        "Add",
        "Mul",
        "Relu",
        "LeakyRelu",
        "PRelu",
        "Elu",
        "Tanh",
        "Sigmoid",
        "Softmax",
        "Cast",
    }
)
"""All that the clean graph is made of; every one runs natively in ONNX Runtime, OpenVINO and TensorRT."""

Array = NDArray[np.generic]


class GraphWriter:
    """A graph while it is written: nodes in order, and weights that can still be changed."""

    def __init__(self, spec: ModelSpec) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Array] = {}
        self._spec = spec
        self._taken = {spec.input_name, spec.output_name}

    def node(self, op: str, name: str, inputs: Sequence[str], **attributes: object) -> str:
        """Append a node and return the name of its one output."""
        output = self._unique(name)
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=output, **attributes))
        return output

    def weight(self, name: str, values: Array) -> str:
        """Add a weight and return its name."""
        name = self._unique(name)
        self.weights[name] = np.ascontiguousarray(values)
        return name

    def proto(self, output: str) -> onnx.ModelProto:
        """The finished model, N C i j k -> N R i j k with every size but the channels free.

        Raises:
            BundleInvalid: ``E_MODEL`` where no layer stands between input and output.
        """
        if not self.nodes:
            raise BundleInvalid("E_MODEL", "the model has no layers.", "Export a trained network.")
        spec = self._spec
        _rename(self.nodes, output, spec.output_name)
        _share(self.nodes, self.weights)
        graph = helper.make_graph(
            self.nodes,
            spec.name,
            [_tensor(spec.input_name, len(spec.modalities))],
            [_tensor(spec.output_name, spec.output_channels)],
            [numpy_helper.from_array(values, name) for name, values in self.weights.items()],
        )
        return finish(graph, spec)

    def _unique(self, name: str) -> str:
        fresh, n = name, 1
        while fresh in self._taken:
            fresh, n = f"{name}_{n}", n + 1
        self._taken.add(fresh)
        return fresh


def finish(graph: onnx.GraphProto, spec: ModelSpec) -> onnx.ModelProto:
    """A graph as a model of the pinned versions that carries its spec."""
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="brainseg-export"
    )
    model.ir_version = IR_VERSION
    return stamped(model, spec)


def stamped(model: onnx.ModelProto, spec: ModelSpec) -> onnx.ModelProto:
    """The model, carrying this spec."""
    helper.set_model_props(model, {METADATA: spec.to_json()})
    return model


def operators(model: onnx.ModelProto) -> Counter[str]:
    """How many nodes of each operator a graph has."""
    return Counter(node.op_type for node in model.graph.node)


def checked(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, if the ONNX checker and shape inference accept all of it.

    Raises:
        BundleInvalid: ``E_MODEL`` for a graph that is not valid.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise BundleInvalid(
            "E_MODEL",
            f"the exported graph is not valid ONNX: {error}.",
            "Report it, with the model's layers.",
        ) from error
    return model


def check_allowed(model: onnx.ModelProto) -> None:
    """Refuse a graph with an operator outside the allow-list, ``E_LAYER``."""
    _refuse(set(operators(model)) - ALLOWED_OPS, "operators outside the allow-list")
    check_domains(model)


def check_domains(model: onnx.ModelProto) -> None:
    """Refuse a graph with an operator outside ONNX itself, ``E_LAYER``: no engine would know it."""
    known = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    strange = {f"{n.domain}:{n.op_type}" for n in model.graph.node if n.domain not in ("", "ai.onnx")}
    _refuse(strange | (set(operators(model)) - known), "operators that are not ONNX's own")


def _refuse(strange: Iterable[str], what: str) -> None:
    if names := sorted(strange):
        raise BundleInvalid(
            "E_LAYER", f"the graph has {what}: {', '.join(names)}.", "Replace the layers that make them."
        )


def _tensor(name: str, channels: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", channels, "i", "j", "k"])


def _rename(nodes: list[onnx.NodeProto], old: str, new: str) -> None:
    for node in nodes:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]


def _share(nodes: list[onnx.NodeProto], weights: dict[str, Array]) -> None:
    """Keep one copy of equal weights: a shared layer writes its own at every use."""
    first: dict[tuple[str, tuple[int, ...], bytes], str] = {}
    renamed = {}
    for name, values in list(weights.items()):
        key = str(values.dtype), values.shape, hashlib.sha256(values.tobytes()).digest()
        if first.setdefault(key, name) != name:
            renamed[name] = first[key]
            del weights[name]
    for node in nodes:
        node.input[:] = [renamed.get(name, name) for name in node.input]
