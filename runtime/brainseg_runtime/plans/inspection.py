"""What a built plan computes in, read from its own account of its layers."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod

from brainseg_runtime.errors import EngineUnavailable

__all__ = ["WORDS", "PlanLayer", "account", "kernel_types", "require_precision"]

WORDS = {"fp32": ("Float", "FP32"), "fp16": ("Half", "FP16")}
"""Precision -> TensorRT's words for the type, newest first."""

_TENSOR = re.compile(
    r"\{ Name: ([^{}]*?), (?:Location: \w+, )?Dimensions: \[([^\]]*)\][^{}]*?Datatype: ([^,{}]+?)\s*[,}]"
)
_WEIGHTS = re.compile(r'Weights: \{"?Type"?: "?(\w+)"?, "?Count"?: (\d+)')
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")


@dataclass(frozen=True)
class PlanLayer:
    """A kernel of a plan, and the nodes of the graph that went into it."""

    name: str
    kind: str
    nodes: frozenset[str]
    kernel: str
    """The type of its largest constant, which for a convolution is its kernel; empty without constants."""
    values: int
    """How many numbers that constant holds."""


def account(text: str) -> tuple[PlanLayer, ...]:
    """The layers of a plan, from what an engine inspector (or a builder's log) writes, one a line."""
    # Not splitlines: between the names of nodes stand control characters that it would split at.
    return tuple(_layers(text.split("\n")))


def kernel_types(layers: Iterable[PlanLayer], convolutions: Iterable[str]) -> dict[str, str]:
    """Convolution -> the type of its kernel in the plan; empty where the plan does not tell.

    Layers beside a convolution may name it too, such as one that pads its channels; the kernel is the largest
    constant of all. Where two are equally large, both types are said.
    """
    found = list(layers)
    return {name: _kernel_type([layer for layer in found if name in layer.nodes]) for name in convolutions}


def _kernel_type(layers: list[PlanLayer]) -> str:
    largest = max((layer.values for layer in layers), default=0)
    return "+".join(sorted({layer.kernel for layer in layers if layer.values == largest and layer.kernel}))


def require_precision(types: Mapping[str, str], precision: str) -> None:
    """Refuse a plan in which a convolution computes in anything but the precision that was asked for.

    Raises:
        EngineUnavailable: ``E_PLAN``, also for a plan that does not say.
    """
    wrong = {name: kind or "unknown" for name, kind in types.items() if kind not in WORDS[precision]}
    if wrong or not types:
        told = ", ".join(f"{name} in {kind}" for name, kind in list(wrong.items())[:5]) or "no convolution"
        raise EngineUnavailable(
            "E_PLAN",
            f"TensorRT built {len(wrong)} of {len(types)} convolutions not in {precision}: {told}.",
            "Use another version of TensorRT, or another engine; report it.",
        )


def _layers(lines: Iterable[str]) -> Iterator[PlanLayer]:
    for line in lines:
        head, there, rest = line.partition(", LayerType: ")
        if not there or not head.startswith("Name: "):
            continue
        read = rest.partition(" Outputs: [")[0]
        # TensorRT-RTX lists constants apart, TensorRT 10 among the inputs; there their names tell.
        inputs, _, constants = read.partition(" Constants: [")
        sizes = [
            (prod(map(int, dims.split(","))), kind)
            for name, dims, kind in _TENSOR.findall(constants) + _TENSOR.findall(inputs)
            if dims and (name in constants or "const" in name)
        ]
        sizes += [(int(count), kind) for kind, count in _WEIGHTS.findall(rest)]
        yield PlanLayer(
            name=head.removeprefix("Name: "),
            kind=rest.partition(",")[0],
            nodes=frozenset(_NODE.findall(rest)),
            kernel=max(sizes)[1] if sizes else "",
            values=max(sizes)[0] if sizes else 0,
        )
