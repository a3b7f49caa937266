"""What a network needs around a voxel, and in memory: what one pass over a whole head rests on."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
from brainseg_runtime.certificate import BOUNDS
from brainseg_runtime.engines.base import Engine
from brainseg_runtime.errors import BundleInvalid
from brainseg_runtime.geometry import Shape
from brainseg_runtime.spec import ModelSpec
from brainseg_runtime.tiles import Tiling, predict
from numpy.typing import NDArray
from onnx import shape_inference

from brainseg_export.graph import ALLOWED_OPS, operators

__all__ = ["halo", "require_local", "shapes", "working_bytes"]

LOCAL_OPS = ALLOWED_OPS - {"InstanceNormalization"}
"""Operators whose answer at a voxel depends on its neighbourhood alone, however much is seen around it."""

IN_PLACE = frozenset({"Relu", "LeakyRelu", "PRelu", "Elu", "Tanh", "Sigmoid", "Cast", "Mul", "Add"})
"""Operators that engines write over their input, or fuse into the convolution before."""


def require_local(model: onnx.ModelProto, spec: ModelSpec) -> None:
    """Refuse the scheme ``whole``, ``E_SPEC``, for a graph with statistics of its own input."""
    strange = sorted(set(operators(model)) - LOCAL_OPS)
    if spec.scheme == "whole" and strange:
        raise BundleInvalid(
            "E_SPEC",
            f"the spec computes whole heads, the graph has {', '.join(strange)}, whose answer at a voxel "
            "depends on how much is seen around it.",
            'Set "scheme" to "tiles" in the spec.',
        )


def working_bytes(model: onnx.ModelProto, spec: ModelSpec) -> int:
    """Bytes of FP32 activations alive at once, at most, per voxel of the input; input and output not counted.

    From the graph alone: tensors live from the node that makes them to the last one that reads them.
    """
    side = max(spec.divisor) * 4
    sizes = shapes(model, side)
    last = {name: n for n, node in enumerate(model.graph.node) for name in node.input}
    alive: dict[str, int] = {}
    peak = 0
    for n, node in enumerate(model.graph.node):
        taken = node.input[0] if node.op_type in IN_PLACE and last.get(node.input[0]) == n else ""
        alive.pop(taken, None)
        alive |= {name: 4 * int(np.prod(sizes[name])) for name in node.output if name in sizes}
        alive.pop(spec.output_name, None)
        peak = max(peak, sum(alive.values()))
        alive = {name: size for name, size in alive.items() if last.get(name, -1) > n}
    return -(-peak // side**3)


def halo(data: Sequence[NDArray[np.float32]], engine: Engine, spec: ModelSpec) -> int:
    """Voxels of halo with which slabs give the whole's logits within the bound of FP32; 0 if none do.

    Shapes: each of ``data`` (i, j, k, C), of which the largest is cut in the middle of its longest axis. A
    network's receptive field is far wider than what it uses (Luo et al. 2016), so this is measured.
    """
    if spec.scheme != "whole":
        return 0
    largest = max(data, key=lambda d: d.size)
    i, j, k, _ = largest.shape
    whole = predict(largest, engine, spec)
    scale = np.maximum(1.0, np.abs(whole))
    for width in range(max(spec.divisor), max(i, j, k), max(spec.divisor)):
        tiling = Tiling.slabs((i, j, k), replace(spec, halo=width), 2)
        if len(tiling) == 1 or not _saves(tiling, (i, j, k), spec):
            return 0
        difference = np.abs(predict(largest, engine, spec, tiling=tiling) - whole)
        if float((difference / scale).max()) <= BOUNDS["fp32"].logits:
            return width
    return 0


def _saves(tiling: Tiling, shape: Shape, spec: ModelSpec) -> bool:
    return tiling.voxels < Tiling.of(shape, spec).voxels


def shapes(model: onnx.ModelProto, side: int) -> dict[str, tuple[int, ...]]:
    """Sizes of every activation for one input of ``side`` voxels along each axis."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for dim, size in zip(
        fixed.graph.input[0].type.tensor_type.shape.dim, (1, 0, side, side, side), strict=True
    ):
        if size:
            dim.ClearField("dim_param")
            dim.dim_value = size
    for dim in list(fixed.graph.output[0].type.tensor_type.shape.dim)[2:]:
        dim.ClearField("dim_param")
    inferred = shape_inference.infer_shapes(fixed, data_prop=True).graph
    return {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in (*inferred.value_info, *inferred.output)
    }
