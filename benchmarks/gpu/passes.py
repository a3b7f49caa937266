"""One pass of a network through ONNX Runtime on CUDA and through PyTorch, side by side."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import onnx
import torch
from brainseg_export.half import to_half
from brainseg_runtime.engines.ort import OrtEngine
from brainseg_runtime.spec import ModelSpec
from onnx.numpy_helper import to_array

from benchmarks.flops import conv_bytes, conv_flops
from benchmarks.gpu.clock import in_turn
from benchmarks.peers.s2d import S2d

__all__ = ["SHAPES", "passes"]

AMP = "PyTorch AMP"
SHAPES = {
    "tile, batch 1": (1, 128, 128, 128),
    "tile, batch 2": (2, 128, 128, 128),
    "tile, batch 4": (4, 128, 128, 128),
    "whole head": (1, 160, 192, 160),
}
"""(N, i, j, k); the head is one of BraTS cut to its brain."""
ITEMSIZE = {"fp32": 4, "fp16": 2}

Shape = tuple[int, int, int, int]


def passes(
    model: onnx.ModelProto, spec: ModelSpec, shapes: dict[str, Shape], compile_too: bool
) -> dict[str, object]:
    """Every shape in every form: seconds, ratio to PyTorch's AMP, and how far logits are from PyTorch's FP32.

    Times begin with the tiles on the GPU and end with the logits there.
    """
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False
    with _ours(model, spec) as ours:
        theirs = _theirs(model, compile_too)
        found: dict[str, object] = {}
        for name, shape in shapes.items():
            grid = shape[1:]
            image = torch.randn(shape[0], 4, *grid, device="cuda")
            works = {form: run(image) for form, run in {**ours, **theirs}.items()}
            reference = works["PyTorch FP32"]()
            apart = {form: _apart(work(), reference) for form, work in works.items()}
            timed = in_turn(works, torch.cuda.synchronize, AMP)
            found[name] = {
                "shape": list(shape),
                "flop": shape[0] * sum(conv_flops(model, grid).values()),
                "bytes": {p: conv_bytes(model, grid, size, shape[0]) for p, size in ITEMSIZE.items()},
                "forms": {form: {**timed[form], "apart": apart[form]} for form in works},
            }
            del works, image, reference
            torch.cuda.empty_cache()
    return found


def _apart(found: torch.Tensor, reference: torch.Tensor) -> float:
    """How far logits are from the reference: the norm of the difference over the reference's."""
    return float((found.float() - reference).norm() / reference.norm())


Run = Callable[[torch.Tensor], Callable[[], torch.Tensor]]
"""Of tiles (N, C, i, j, k) on the GPU: one pass over them, (N, R, i, j, k)."""


@contextmanager
def _ours(model: onnx.ModelProto, spec: ModelSpec) -> Iterator[dict[str, Run]]:
    """ONNX Runtime as the runtime opens it, on addresses of the GPU."""
    graphs = {"fp32": model, "fp16": to_half(model)}
    engines = {p: OrtEngine(graph.SerializeToString(), spec, p, "cuda:0") for p, graph in graphs.items()}

    def run(precision: str) -> Run:
        def of(image: torch.Tensor) -> Callable[[], torch.Tensor]:
            n, _, *grid = image.shape
            out = torch.empty(n, spec.output_channels, *grid, device="cuda")
            shape = tuple(image.shape)

            def once() -> torch.Tensor:
                engines[precision].infer_at(image.data_ptr(), out.data_ptr(), shape)
                return out

            return once

        return of

    try:
        yield {f"ort {p.upper()}": run(p) for p in graphs}
    finally:
        for engine in engines.values():
            engine.close()


def _theirs(model: onnx.ModelProto, compile_too: bool) -> dict[str, Run]:
    """PyTorch with the same weights: FP32 without TF32, mixed precision, FP16 channels last, compiled."""
    weights = {tensor.name: to_array(tensor) for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose")]
    layers = [(weights[node.input[1]], weights[node.input[2]]) for node in nodes]
    plain = S2d.of(layers).cuda()
    last = S2d.of(layers).cuda().half().to(memory_format=torch.channels_last_3d)

    def fp32(image: torch.Tensor) -> torch.Tensor:
        return plain(image)

    def amp(image: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cuda", torch.float16):
            return plain(image)

    def half(image: torch.Tensor, network: Callable[[torch.Tensor], torch.Tensor] = last) -> torch.Tensor:
        return network(image.to(torch.float16, memory_format=torch.channels_last_3d))

    forms = {"PyTorch FP32": fp32, AMP: amp, "PyTorch FP16, channels last": half}
    if compile_too:
        compiled = torch.compile(last, dynamic=False)
        forms["PyTorch FP16, channels last, compiled"] = lambda image: half(image, compiled)
    return {name: _inferring(form) for name, form in forms.items()}


def _inferring(form: Callable[[torch.Tensor], torch.Tensor]) -> Run:
    def of(image: torch.Tensor) -> Callable[[], torch.Tensor]:
        def once() -> torch.Tensor:
            with torch.inference_mode():
                return form(image)

        return once

    return of
