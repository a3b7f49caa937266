"""How much arithmetic a graph is, and how much this machine can do: what speed is held against."""

import time

import numpy as np
import onnx
import openvino
from brainseg_export.locality import shapes

__all__ = ["conv_flops", "gemm_peak"]


def conv_flops(model: onnx.ModelProto, grid: tuple[int, int, int]) -> float:
    """Floating-point operations of a graph's convolutions on a grid (i, j, k), two a multiplication."""
    side = 32
    sizes = shapes(model, side)
    weights = {w.name: tuple(w.dims) for w in model.graph.initializer}
    total = 0.0
    for node in model.graph.node:
        kernel = weights.get(node.input[1]) if node.op_type in ("Conv", "ConvTranspose") else None
        if kernel is not None:
            # A transposed convolution of stride s = kernel touches each output once.
            spread = sizes[node.output[0]] if node.op_type == "Conv" else sizes[node.input[0]]
            total += 2.0 * float(np.prod(kernel)) * float(np.prod(spread[2:]))
    return total * float(np.prod(grid)) / side**3


def gemm_peak(threads: int, size: int = 2048, rounds: int = 5) -> dict[str, float]:
    """The best of ``rounds`` square products in FP32, in GFLOP/s, by library."""
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(size, size)).astype(np.float32) for _ in range(2))
    work = 2.0 * size**3 / 1e9
    product = _onednn(b, threads)
    best = {"OpenBLAS (numpy)": 0.0, "oneDNN (OpenVINO)": 0.0}
    for _ in range(rounds + 1):
        for name, multiply in (("OpenBLAS (numpy)", b.__rmatmul__), ("oneDNN (OpenVINO)", product)):
            started = time.perf_counter()
            multiply(a)
            best[name] = max(best[name], work / (time.perf_counter() - started))
    return best


def _onednn(b, threads):
    """Multiplication by ``b`` in oneDNN, whose packing of ``b`` is done once."""
    from openvino import opset13 as ops

    left = ops.parameter(list(b.shape), np.float32)
    graph = openvino.Model([ops.matmul(left, ops.constant(b), False, False)], [left])
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": str(threads)}
    request = openvino.Core().compile_model(graph, "CPU", options).create_infer_request()
    return lambda a: request.infer([a], share_inputs=True, share_outputs=True)
