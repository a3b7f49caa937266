"""FP32 graph -> FP16 graph: every node computes in one type, and the types are written into the graph.

TensorRT 11 has no FP16 flag: what it computes in is what the graph says. Input and output stay FP32, and so
do an activation at the end and, unless asked otherwise, the statistics of normalisations.
"""

import numpy as np
import onnx
from brainseg_runtime.errors import BundleInvalid
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, shape_inference

from brainseg_export.graph import checked

__all__ = ["LARGEST", "to_half"]

LARGEST = 65504.0
"""The largest FP16 number; a weight that reaches it is refused."""

HALF_OPS = frozenset(
    {"Conv", "ConvTranspose", "InstanceNormalization", "MaxPool", "AveragePool", "Resize", "Pad", "Concat"}
    | {"Add", "Mul", "Relu", "LeakyRelu", "PRelu", "Elu", "Tanh", "Sigmoid", "Softmax"}
    # These only move values; tf2onnx writes them.
    | {"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Slice", "Tile"}
)
"""What computes in FP16. Anything else, such as the sums of an unfused normalisation, stays FP32."""

FP32, FP16 = int(TensorProto.FLOAT), int(TensorProto.FLOAT16)
SUFFIX = {FP32: "fp32", FP16: "fp16"}


def to_half(model: onnx.ModelProto, norm32: bool = True) -> onnx.ModelProto:
    """An FP16 twin of an FP32 graph with the same input and output, both FP32.

    Raises:
        BundleInvalid: ``E_MODEL`` for a weight that is not finite or beyond FP16, by name.
    """
    return checked(_Pass(model, norm32).run())


class _Pass:
    """One walk over the nodes, which knows the type that every tensor has by now."""

    def __init__(self, model: onnx.ModelProto, norm32: bool) -> None:
        self._model = _without_constants(model)
        graph = self._model.graph
        self._norm32 = norm32
        self._weights = {w.name: numpy_helper.to_array(w) for w in graph.initializer}
        self._types = _float_types(self._model)
        self._outputs = {value.name for value in graph.output}
        self._casts: dict[tuple[str, int], str] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._kept: dict[str, onnx.TensorProto] = {}

    def run(self) -> onnx.ModelProto:
        graph = self._model.graph
        for node in graph.node:
            self._convert(node)
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(self._nodes)
        graph.initializer.extend(self._kept.values())
        return self._model

    def _convert(self, old: onnx.NodeProto) -> None:
        node = onnx.NodeProto()
        node.CopyFrom(old)
        kind = self._kind(node)
        node.input[:] = [self._as(name, self._input_kind(node, n, kind)) for n, name in enumerate(node.input)]
        self._nodes.append(node)
        for n, name in enumerate(node.output):
            if name not in self._types:
                continue
            self._types[name] = kind
            if name in self._outputs and kind == FP16:
                node.output[n] = f"{name}/fp16"
                self._nodes.append(
                    helper.make_node("Cast", [node.output[n]], [name], f"{name}/cast", to=FP32)
                )
                self._types[name] = FP32

    def _kind(self, node: onnx.NodeProto) -> int:
        """The float type that a node computes in."""
        last = any(name in self._outputs for name in node.output)
        if node.op_type not in HALF_OPS or (last and node.op_type in ("Sigmoid", "Softmax")):
            return FP32
        if self._norm32 and node.op_type == "InstanceNormalization":
            return FP32
        return FP16

    def _input_kind(self, node: onnx.NodeProto, n: int, kind: int) -> int:
        # A cast reads what there is, and says itself what comes out.
        if node.op_type == "Cast":
            return self._types.get(node.input[n], FP32)
        # ONNX defines a Resize's roi and scales in FP32, whatever it resizes.
        return FP32 if node.op_type == "Resize" and n in (1, 2) else kind

    def _as(self, name: str, kind: int) -> str:
        """The name under which a float tensor or weight is found in a type; other tensors are left alone."""
        if name in self._weights:
            return self._weight(name, kind)
        if self._types.get(name, kind) == kind:
            return name
        if (name, kind) not in self._casts:
            cast = f"{name}/{SUFFIX[kind]}"
            self._nodes.append(helper.make_node("Cast", [name], [cast], cast, to=kind))
            self._casts[name, kind] = cast
        return self._casts[name, kind]

    def _weight(self, name: str, kind: int) -> str:
        values = self._weights[name]
        if values.dtype != np.float32 or kind == FP32:
            self._kept[name] = numpy_helper.from_array(values, name)
            return name
        half = f"{name}/fp16"
        if half not in self._kept:
            self._kept[half] = numpy_helper.from_array(_rounded(name, values), half)
        return half


def _rounded(name: str, values: NDArray[np.float32]) -> NDArray[np.float16]:
    largest = float(np.abs(values).max(initial=0.0))
    if not largest < LARGEST:
        raise BundleInvalid(
            "E_MODEL",
            f"weight {name!r} reaches {largest:g}, FP16 ends at {LARGEST:g}.",
            "Train with weight decay, or give the inputs a smaller scale.",
        )
    return values.astype(np.float16)


def _float_types(model: onnx.ModelProto) -> dict[str, int]:
    """Tensor -> its type, for those that are FP32 now."""
    graph = shape_inference.infer_shapes(model, strict_mode=True).graph
    values = [*graph.input, *graph.value_info, *graph.output]
    return {v.name: v.type.tensor_type.elem_type for v in values if v.type.tensor_type.elem_type in SUFFIX}


def _without_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which constants that are nodes have become weights."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    constants = [node for node in model.graph.node if node.op_type == "Constant"]
    for node in constants:
        (value,) = (attribute for attribute in node.attribute if attribute.name == "value")
        copy.graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(value.t), node.output[0]))
    nodes = [node for node in model.graph.node if node.op_type != "Constant"]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy
