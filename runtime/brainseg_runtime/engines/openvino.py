"""OpenVINO: the fastest engine on a CPU that has AVX-512."""

import sys

import numpy as np
from numpy.typing import NDArray

from brainseg_runtime.engines.base import EngineIdentity, finite
from brainseg_runtime.errors import BundleInvalid, EngineUnavailable
from brainseg_runtime.spec import ModelSpec

# openvino reports each import to its maker over the network, without asking, unless this package is
# absent: so it is absent while openvino is imported. A hospital's machine tells nobody what it runs.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
import openvino  # noqa: E402

del sys.modules["openvino_telemetry"]

__all__ = ["OpenvinoEngine"]

DEVICES = {"cpu": "CPU"}

HINTS = {"fp32": "f32", "fp16": "f32", "bf16": "bf16"}
"""What is computed in, per precision: on a CPU a graph in FP16 is stored so, and computed in FP32."""


class OpenvinoEngine:
    """Runs a graph with OpenVINO on the CPU.

    The graph is compiled once for tiles of any size: kernels for a new size are made within its first
    tile, at a cost that cannot be told from noise, where compiling for a fixed size costs as much again.
    """

    def __init__(
        self, graph: bytes, spec: ModelSpec, precision: str, device: str = "cpu", threads: int | None = None
    ) -> None:
        """Compile the bytes of a graph, N C i j k -> N R i j k.

        Raises:
            EngineUnavailable: ``E_ENGINE_DEVICE`` for a device other than a CPU, or one that does not
                compute in the precision asked for.
            BundleInvalid: ``E_BUNDLE_DAMAGED`` for a graph that does not load, ``E_SPEC`` for one
                whose tensors are not named as in the spec.
        """
        provider = DEVICES.get(device)
        if provider is None:
            raise EngineUnavailable(
                "E_ENGINE_DEVICE",
                f"engine openvino does not run on device {device!r}.",
                f"Use --device {' or '.join(DEVICES)}.",
            )
        # Left alone OpenVINO takes bfloat16 where the CPU has it, which changes 0.8 % of the voxels.
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": HINTS[precision]}
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = str(threads)
        core = openvino.Core()
        try:
            model = core.read_model(model=graph)
            compiled = core.compile_model(model, provider, options)
        except RuntimeError as error:
            raise BundleInvalid(
                "E_BUNDLE_DAMAGED", f"OpenVINO cannot load the graph: {error}.", "Export it again."
            ) from error
        names = [model.inputs[0].get_any_name()], [model.outputs[0].get_any_name()]
        if names != ([spec.input_name], [spec.output_name]):
            raise BundleInvalid(
                "E_SPEC",
                f"the graph's tensors are {names}, the spec's {spec.input_name}, {spec.output_name}.",
                "Export the model again.",
            )
        computes = _computes_in(compiled)
        if HINTS[precision] not in computes or (HINTS[precision] == "f32" and computes != {"f32"}):
            raise EngineUnavailable(
                "E_ENGINE_DEVICE",
                f"OpenVINO computes in {', '.join(sorted(computes))} on this CPU, not in {precision}.",
                "Use --engine ort, or another precision.",
            )
        version = str(openvino.__version__).split("-")[0]
        self._identity = EngineIdentity("openvino", provider, device, precision, version)
        self._channels = spec.output_channels
        self._request: openvino.InferRequest | None = compiled.create_infer_request()

    @property
    def identity(self) -> EngineIdentity:
        """The device and precision that the compiled graph really has."""
        return self._identity

    def infer(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of a batch of tiles, (N, i, j, k, C) -> (N, i, j, k, R)."""
        if self._request is None:
            raise EngineUnavailable("E_ENGINE_FAILED", "the engine is closed.", "Load the model again.")
        channels_first = np.ascontiguousarray(np.moveaxis(tiles, -1, 1), dtype=np.float32)
        # OpenVINO reads and writes our own memory: no copy, and no result that the next tile overwrites.
        logits = np.empty((len(tiles), self._channels, *tiles.shape[1:4]), dtype=np.float32)
        try:
            self._request.set_input_tensor(openvino.Tensor(channels_first, shared_memory=True))
            self._request.set_output_tensor(openvino.Tensor(logits, shared_memory=True))
            self._request.infer()
        except RuntimeError as error:
            raise EngineUnavailable(
                "E_ENGINE_FAILED", f"OpenVINO failed on tiles {tiles.shape}: {error}.", "Report it."
            ) from error
        return finite(np.moveaxis(logits, 1, -1), self._identity)

    def close(self) -> None:
        """Free the compiled graph."""
        self._request = None


def _computes_in(compiled: "openvino.CompiledModel") -> set[str]:
    """The types that the operators of a compiled graph really run in, such as ``{"f32"}``."""
    operators = (operator.get_rt_info() for operator in compiled.get_runtime_model().get_ops())
    return {
        str(operator["runtimePrecision"].value)
        for operator in operators
        if operator["layerType"].value not in ("Input", "Output", "Const")
    }
