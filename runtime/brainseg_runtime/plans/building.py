"""From an ONNX graph to a plan: one builder for TensorRT 10, TensorRT 11 and TensorRT-RTX.

Networks are strongly typed: a plan computes in what the graph says, node by node, and no flag changes that.
"""

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from brainseg_runtime.errors import BundleInvalid, EngineUnavailable
from brainseg_runtime.plans.api import Builder, INetworkDefinition, OnnxParser, RtxBuilderConfig, TensorRT
from brainseg_runtime.plans.hearing import Progress, logger, monitor
from brainseg_runtime.plans.inspection import account, kernel_types
from brainseg_runtime.plans.request import Profile

__all__ = ["Built", "build", "census", "inspected"]

_ONE_AT_A_TIME = threading.Lock()
"""TensorRT has one logger a process, so what it says can be told apart only if one build runs at a time."""


@dataclass(frozen=True, eq=False)
class Built:
    """A plan fresh from the builder, and what it says of itself."""

    plan: bytes
    kernels: Mapping[str, str]
    """Convolution -> the type of its kernel in the plan; empty where the builder did not tell."""


def build(
    trt: TensorRT,
    graph: bytes,
    profiles: Sequence[Profile],
    *,
    target: tuple[int, int] | None = None,
    for_lean: bool = False,
    progress: Progress | None = None,
) -> Built:
    """Build a plan, for the GPU that is here.

    TensorRT-RTX needs none here, and is told the compute capability of its ``target``; without one it builds
    for any from Ampere on.

    Raises:
        BundleInvalid: ``E_BUNDLE_DAMAGED`` for bytes that are no graph, or one that TensorRT cannot run.
        EngineUnavailable: ``E_PLAN`` where the builder fails.
    """
    with _ONE_AT_A_TIME, logger(trt).heard() as said:
        builder = trt.Builder(logger(trt))
        network, parser = _parsed(trt, builder, graph)
        config = builder.create_builder_config()
        if config is None:
            raise _failed("it makes no configuration", said.errors)
        # TF32 would keep 10 of FP32's 23 bits without a word.
        config.clear_flag(trt.BuilderFlag.TF32)
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if target is not None:
            _aim(trt, cast(RtxBuilderConfig, config), target)
        if for_lean:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
            # Else the plan carries machine code that the runtime would have to be told to trust.
            config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)
        else:
            # Else a plan may ask for the memory that its largest shapes take, whatever runs. TensorRT-RTX
            # does so by itself; whether plans for the lean library can, nobody says.
            config.set_preview_feature(trt.PreviewFeature.RUNTIME_ACTIVATION_RESIZE_10_10, True)
        for shapes in profiles:
            profile = builder.create_optimization_profile()
            if profile is None:
                raise _failed("it makes no profile", said.errors)
            profile.set_shape(network.get_input(0).name, shapes.smallest, shapes.typical, shapes.largest)
            if config.add_optimization_profile(profile) < 0:
                raise _failed(f"it takes no shapes {shapes}", said.errors)
        watched = monitor(trt, progress, said)
        config.progress_monitor = watched
        memory = builder.build_serialized_network(network, config)
        del parser
        if watched.stopped is not None:
            raise watched.stopped
        if memory is None:
            raise _failed("the builder gave nothing", said.errors)
        kernels = kernel_types(account("\n".join(said.lines)), _convolutions(trt, network))
        return Built(bytes(memory), kernels)


def census(trt: TensorRT, graph: bytes) -> Counter[str]:
    """How many layers of each kind TensorRT makes of a graph, such as ``CONVOLUTION``.

    Raises:
        BundleInvalid: as ``build``.
    """
    with _ONE_AT_A_TIME, logger(trt).heard():
        builder = trt.Builder(logger(trt))
        network, parser = _parsed(trt, builder, graph)
        kinds = (network.get_layer(n).type for n in range(network.num_layers))
        found = Counter(str(kind).rpartition(".")[2] for kind in kinds)
        del parser
        return found


def inspected(trt: TensorRT, built: Built) -> dict[str, str]:
    """Convolution -> the type of its kernel, asked of the loaded plan itself; it takes the plan's GPU.

    Raises:
        EngineUnavailable: ``E_PLAN`` for a plan that does not load.
    """
    with _ONE_AT_A_TIME, logger(trt).heard() as said:
        engine = trt.Runtime(logger(trt)).deserialize_cuda_engine(built.plan)
        if engine is None:
            raise _failed("what it built does not load", said.errors)
        inspector = engine.create_engine_inspector()
        if inspector is None:
            raise _failed("what it built cannot be inspected", said.errors)
        text = inspector.get_engine_information(trt.LayerInformationFormat.ONELINE)
    return kernel_types(account(text), built.kernels)


def _parsed(trt: TensorRT, builder: Builder, graph: bytes) -> tuple[INetworkDefinition, OnnxParser]:
    """A network, and the parser, which holds its weights and must live as long."""
    # The number of the flag differs between versions, so it is never written down.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    if network is None:
        raise _failed("it makes no strongly typed network", ())
    parser = trt.OnnxParser(network, logger(trt))
    if not parser.parse(graph):
        reasons = "; ".join(parser.get_error(n).desc() for n in range(parser.num_errors))
        raise BundleInvalid(
            "E_BUNDLE_DAMAGED", f"TensorRT cannot take the graph: {reasons}.", "Export the model again."
        )
    if (network.num_inputs, network.num_outputs) != (1, 1):
        raise BundleInvalid(
            "E_BUNDLE_DAMAGED",
            f"the graph has {network.num_inputs} inputs and {network.num_outputs} outputs, not one each.",
            "Export the model again.",
        )
    return network, parser


def _aim(trt: TensorRT, config: RtxBuilderConfig, target: tuple[int, int]) -> None:
    config.num_compute_capabilities = 1
    word = "SM{}{}".format(*target)
    if not config.set_compute_capability(getattr(trt.ComputeCapability, word), 0):
        raise _failed(f"it does not build for {word}", ())


def _convolutions(trt: TensorRT, network: INetworkDefinition) -> list[str]:
    kinds = trt.LayerType.CONVOLUTION, trt.LayerType.DECONVOLUTION
    layers = (network.get_layer(n) for n in range(network.num_layers))
    return [layer.name for layer in layers if layer.type in kinds]


def _failed(what: str, errors: Sequence[str]) -> EngineUnavailable:
    said = f" It says: {' | '.join(errors)[:2000]}" if errors else ""
    return EngineUnavailable(
        "E_PLAN",
        f"TensorRT does not build the plan: {what}.{said}",
        "Use another version of TensorRT, or another engine.",
    )
