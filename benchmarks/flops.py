"""How much arithmetic a graph is, and how many bytes it must move at least."""

import numpy as np
import onnx
from brainseg_export.locality import shapes

__all__ = ["conv_bytes", "conv_flops"]

Grid = tuple[int, int, int]

SIDE = 32
"""Voxels along the edge of the cube whose shapes are read; everything grows with the voxels."""


def conv_flops(model: onnx.ModelProto, grid: Grid) -> dict[str, float]:
    """Convolution -> its floating-point operations on a grid (i, j, k), two a multiplication."""
    sizes, weights = shapes(model, SIDE), _weights(model)
    found = {}
    for node in _convolutions(model):
        # A transposed convolution of stride s = kernel touches each output once.
        spread = sizes[node.output[0]] if node.op_type == "Conv" else sizes[node.input[0]]
        each = 2.0 * float(np.prod(weights[node.input[1]])) * float(np.prod(spread[2:]))
        found[node.name] = each * _times(grid)
    return found


def conv_bytes(model: onnx.ModelProto, grid: Grid, itemsize: int, batch: int = 1) -> float:
    """Bytes that the convolutions read and write on grids if each touches its input and output once.

    What stands between them is then fused into them. Weights are read once for all.
    """
    weights = _weights(model)
    (image,) = model.graph.input
    channels = image.type.tensor_type.shape.dim[1].dim_value
    sizes = {image.name: (1, channels, SIDE, SIDE, SIDE), **shapes(model, SIDE)}
    ends = [name for node in _convolutions(model) for name in (node.input[0], node.output[0])]
    moved = sum(float(np.prod(sizes[name])) for name in ends)
    return itemsize * (batch * moved * _times(grid) + sum(float(np.prod(dims)) for dims in weights.values()))


def _convolutions(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose")]


def _weights(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {w.name: tuple(w.dims) for w in model.graph.initializer}


def _times(grid: Grid) -> float:
    return float(np.prod(grid)) / SIDE**3
