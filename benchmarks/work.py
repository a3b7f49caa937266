"""How much arithmetic this machine can do, and where a pass spends its time: what speed is held against."""

import time

import numpy as np
import onnx
import openvino

from benchmarks.flops import conv_flops

__all__ = ["gemm_peak", "parts"]


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
