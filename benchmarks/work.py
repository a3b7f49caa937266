"""How much arithmetic a graph is, and how much this machine can do: what speed is held against."""

import time

import numpy as np
import onnx
import openvino
from brainseg_export.locality import shapes

__all__ = ["conv_flops", "gemm_peak", "parts"]


def conv_flops(model: onnx.ModelProto, grid: tuple[int, int, int]) -> dict[str, float]:
    """Convolution -> its floating-point operations on a grid (i, j, k), two a multiplication."""
    side = 32
    sizes = shapes(model, side)
    weights = {w.name: tuple(w.dims) for w in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        kernel = weights.get(node.input[1]) if node.op_type in ("Conv", "ConvTranspose") else None
        if kernel is not None:
            # A transposed convolution of stride s = kernel touches each output once.
            spread = sizes[node.output[0]] if node.op_type == "Conv" else sizes[node.input[0]]
            each = 2.0 * float(np.prod(kernel)) * float(np.prod(spread[2:]))
            found[node.name] = each * float(np.prod(grid)) / side**3
    return found


def parts(model: onnx.ModelProto, grid: tuple[int, int, int], threads: int) -> dict[str, dict[str, float]]:
    """Where OpenVINO says that a pass over a grid goes: seconds, and GFLOP/s of the plain convolutions.

    Those with as many filters are one part, so a level of the U-Net is; all else is by kind.
    """
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "PERF_COUNT": True}
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", options)
    request = compiled.create_infer_request()
    head = np.random.default_rng(0).normal(size=(1, 4, *grid)).astype(np.float32)
    for _ in range(3):
        request.infer([head])
    work, filters = conv_flops(model, grid), {w.name: w.dims[0] for w in model.graph.initializer}
    level = {node.name: filters[node.input[1]] for node in model.graph.node if node.op_type == "Conv"}
    seconds: dict[str, float] = {}
    flops: dict[str, float] = {}
    for entry in request.profiling_info:
        # OpenVINO puts what it fused with a convolution behind the convolution's name.
        name = entry.node_name.split("/")[0]
        part = f"convolutions to {level[name]} filters" if name in level else entry.node_type
        seconds[part] = seconds.get(part, 0.0) + entry.real_time.total_seconds()
        flops[part] = flops.get(part, 0.0) + (work[name] if name in level else 0.0)
    return {
        part: {"seconds": round(time, 3), "gflops": round(flops[part] / time / 1e9, 1)}
        for part, time in sorted(seconds.items(), key=lambda entry: -entry[1])
        if time > 0.01 * sum(seconds.values())
    }


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
