"""The part of TensorRT that brainseg uses, as types: its wheels come without any.

Every class and member here has the same name in TensorRT 10.13 to 11.4 and in TensorRT-RTX, but for those in
``RTX_ONLY``: the tests hold them against the packages, and mypy lets the code use nothing else.
"""

# ruff: noqa: ANN401, D102, N802 - names and types are TensorRT's

from collections.abc import Sequence
from typing import Any, Protocol

__all__ = ["RTX_ONLY", "RUNNER", "RtxBuilderConfig", "RtxCudaEngine", "TensorRT"]

RUNNER = (
    "DataType",
    "ExecutionContextAllocationStrategy",
    "ICudaEngine",
    "IExecutionContext",
    "ILogger",
    "Runtime",
    "TensorIOMode",
)
"""What runs a plan; the lean library has these and nothing that builds."""


RTX_ONLY = (
    "ComputeCapability",
    "DynamicShapesKernelSpecializationStrategy",
    "RtxBuilderConfig",
    "RtxCudaEngine",
    "RtxRuntimeConfig",
)
"""What only TensorRT-RTX has: it builds for GPUs that need not be there, so it must be told which, and it
compiles while it runs."""


class ILogger(Protocol):
    """Takes what TensorRT says; subclassed."""

    Severity: Any

    def log(self, severity: Any, msg: str) -> None: ...


class IProgressMonitor(Protocol):
    """Is told how far a build is; subclassed."""

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None: ...
    def step_complete(self, phase_name: str, step: int) -> bool: ...
    def phase_finish(self, phase_name: str) -> None: ...


class DataType(Protocol):
    """The types of tensors."""

    FLOAT: Any
    HALF: Any


class LayerType(Protocol):
    """The kinds of layers of a network."""

    CONVOLUTION: Any
    DECONVOLUTION: Any


class TensorIOMode(Protocol):
    """Whether a tensor goes in or comes out."""

    INPUT: Any
    OUTPUT: Any


class BuilderFlag(Protocol):
    """What a builder is allowed to do."""

    TF32: Any
    VERSION_COMPATIBLE: Any
    EXCLUDE_LEAN_RUNTIME: Any


class NetworkDefinitionCreationFlag(Protocol):
    """How a network is to be read."""

    STRONGLY_TYPED: Any


class PreviewFeature(Protocol):
    """What a builder does only where it is asked to."""

    RUNTIME_ACTIVATION_RESIZE_10_10: Any


class ProfilingVerbosity(Protocol):
    """How much of itself a plan remembers."""

    DETAILED: Any


class LayerInformationFormat(Protocol):
    """How an inspector writes."""

    ONELINE: Any


class ExecutionContextAllocationStrategy(Protocol):
    """Who gives a context its memory."""

    USER_MANAGED: Any


class ITensor(Protocol):
    """A tensor of a network."""

    name: str
    dtype: Any
    shape: Sequence[int]


class ILayer(Protocol):
    """A layer of a network."""

    name: str
    type: Any
    metadata: str
    num_inputs: int

    def get_input(self, index: int) -> ITensor | None: ...


class INetworkDefinition(Protocol):
    """A network as the parser understood it."""

    num_layers: int
    num_inputs: int
    num_outputs: int

    def get_layer(self, index: int) -> ILayer: ...
    def get_input(self, index: int) -> ITensor: ...
    def get_output(self, index: int) -> ITensor: ...


class ParserError(Protocol):
    """Why a graph was not understood."""

    def desc(self) -> str: ...


class OnnxParser(Protocol):
    """Reads an ONNX graph into a network."""

    num_errors: int

    def parse(self, model: bytes) -> bool: ...
    def get_error(self, index: int) -> ParserError: ...


class IOptimizationProfile(Protocol):
    """The shapes that a plan is made for."""

    def set_shape(self, input: str, min: Sequence[int], opt: Sequence[int], max: Sequence[int]) -> None: ...


class IBuilderConfig(Protocol):
    """How a plan is to be built."""

    profiling_verbosity: Any
    progress_monitor: Any

    def set_flag(self, flag: Any) -> None: ...
    def clear_flag(self, flag: Any) -> None: ...
    def set_preview_feature(self, feature: Any, enable: bool) -> None: ...
    def add_optimization_profile(self, profile: IOptimizationProfile) -> int: ...


class ComputeCapability(Protocol):
    """The GPUs that TensorRT-RTX builds for."""

    SM75: Any
    SM80: Any
    SM86: Any
    SM89: Any
    SM120: Any
    SM121: Any


class RtxBuilderConfig(Protocol):
    """What ``IBuilderConfig`` has besides in TensorRT-RTX."""

    num_compute_capabilities: int

    def set_compute_capability(self, compute_capability: Any, index: int) -> bool: ...


class Builder(Protocol):
    """Makes a plan of a network."""

    def create_network(self, flags: int) -> INetworkDefinition | None: ...
    def create_builder_config(self) -> IBuilderConfig | None: ...
    def create_optimization_profile(self) -> IOptimizationProfile | None: ...
    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> Any | None: ...


class EngineInspector(Protocol):
    """Tells what a plan is made of."""

    def get_engine_information(self, format: Any) -> str: ...


class IExecutionContext(Protocol):
    """One run of a plan at a time."""

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool: ...
    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool: ...
    def infer_shapes(self) -> Sequence[str]: ...
    def get_tensor_shape(self, name: str) -> Sequence[int]: ...
    def update_device_memory_size_for_shapes(self) -> int: ...
    def set_device_memory(self, memory: int, size: int) -> None: ...
    def set_tensor_address(self, name: str, memory: int) -> bool: ...
    def execute_async_v3(self, stream_handle: int) -> bool: ...


class ICudaEngine(Protocol):
    """A plan, loaded."""

    num_io_tensors: int
    num_optimization_profiles: int

    def get_tensor_name(self, index: int) -> str: ...
    def get_tensor_mode(self, name: str) -> Any: ...
    def get_tensor_dtype(self, name: str) -> Any: ...
    def get_tensor_profile_shape(self, name: str, profile_index: int) -> Sequence[Sequence[int]]: ...
    def create_engine_inspector(self) -> EngineInspector | None: ...
    def create_execution_context(self, strategy: Any) -> IExecutionContext | None: ...


class DynamicShapesKernelSpecializationStrategy(Protocol):
    """When TensorRT-RTX compiles kernels for a shape that it meets."""

    EAGER: Any
    NONE: Any


class RtxRuntimeConfig(Protocol):
    """How a context of TensorRT-RTX runs."""

    dynamic_shapes_kernel_specialization_strategy: Any

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None: ...


class RtxCudaEngine(Protocol):
    """What ``ICudaEngine`` takes besides in TensorRT-RTX."""

    def create_runtime_config(self) -> RtxRuntimeConfig: ...
    def create_execution_context(self, runtime_config: RtxRuntimeConfig) -> IExecutionContext | None: ...


class Runtime(Protocol):
    """Loads plans. Made without a GPU it ends the process, so ``gpu.find`` comes first."""

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None: ...


class TensorRT(Protocol):
    """The module: ``tensorrt``, ``tensorrt_rtx``, or ``tensorrt_lean_bindings`` as far as ``RUNNER`` goes."""

    __version__: str
    ILogger: Any
    IProgressMonitor: Any
    DataType: type[DataType]
    LayerType: type[LayerType]
    TensorIOMode: type[TensorIOMode]
    BuilderFlag: type[BuilderFlag]
    ComputeCapability: type[ComputeCapability]
    DynamicShapesKernelSpecializationStrategy: type[DynamicShapesKernelSpecializationStrategy]
    NetworkDefinitionCreationFlag: type[NetworkDefinitionCreationFlag]
    PreviewFeature: type[PreviewFeature]
    ProfilingVerbosity: type[ProfilingVerbosity]
    LayerInformationFormat: type[LayerInformationFormat]
    ExecutionContextAllocationStrategy: type[ExecutionContextAllocationStrategy]

    def __hash__(self) -> int: ...
    def Builder(self, logger: Any) -> Builder: ...
    def OnnxParser(self, network: INetworkDefinition, logger: Any) -> OnnxParser: ...
    def Runtime(self, logger: Any) -> Runtime: ...
