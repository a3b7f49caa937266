"""ONNX Runtime: the engine that runs everywhere."""

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from brainseg_runtime.engines.base import EngineIdentity, finite
from brainseg_runtime.errors import BundleInvalid, EngineUnavailable
from brainseg_runtime.spec import ModelSpec

__all__ = ["OrtEngine"]

PROVIDERS = {"cpu": "CPUExecutionProvider"}


class OrtEngine:
    """Runs a graph with ONNX Runtime on the CPU."""

    def __init__(
        self, graph: bytes, spec: ModelSpec, precision: str, device: str = "cpu", threads: int | None = None
    ) -> None:
        """Open a session on the bytes of a graph, N C i j k -> N R i j k.

        Raises:
            EngineUnavailable: ``E_ENGINE_DEVICE`` where the device's provider is not the one in use.
            BundleInvalid: ``E_BUNDLE_DAMAGED`` for a graph that does not load, ``E_SPEC`` for one
                whose tensors are not named as in the spec.
        """
        provider = PROVIDERS.get(device)
        if provider is None:
            raise EngineUnavailable(
                "E_ENGINE_DEVICE",
                f"engine ort does not run on device {device!r}.",
                f"Use --device {' or '.join(PROVIDERS)}.",
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # session.set_denormal_as_zero stays off: it changes the arithmetic of the caller's own thread.
        try:
            session = onnxruntime.InferenceSession(graph, options, providers=[provider])
        # ONNX Runtime raises a class of its own for each status code, over plain RuntimeError and Exception.
        except Exception as error:
            raise BundleInvalid(
                "E_BUNDLE_DAMAGED", f"ONNX Runtime cannot load the graph: {error}.", "Export it again."
            ) from error
        if session.get_providers()[0] != provider:
            raise EngineUnavailable(
                "E_ENGINE_DEVICE",
                f"ONNX Runtime took {session.get_providers()[0]} where {provider} was asked for.",
                "Check the installation of onnxruntime.",
            )
        names = [session.get_inputs()[0].name], [session.get_outputs()[0].name]
        if names != ([spec.input_name], [spec.output_name]):
            raise BundleInvalid(
                "E_SPEC",
                f"the graph's tensors are {names}, the spec's {spec.input_name}, {spec.output_name}.",
                "Export the model again.",
            )
        self._session: onnxruntime.InferenceSession | None = session
        self._spec = spec
        self._identity = EngineIdentity("ort", provider, device, precision, onnxruntime.__version__)

    @property
    def identity(self) -> EngineIdentity:
        """The provider that the session really has."""
        return self._identity

    def infer(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of a batch of tiles, (N, i, j, k, C) -> (N, i, j, k, R)."""
        if self._session is None:
            raise EngineUnavailable("E_ENGINE_FAILED", "the engine is closed.", "Load the model again.")
        channels_first = np.ascontiguousarray(np.moveaxis(tiles, -1, 1), dtype=np.float32)
        try:
            (logits,) = self._session.run([self._spec.output_name], {self._spec.input_name: channels_first})
        except Exception as error:
            raise EngineUnavailable(
                "E_ENGINE_FAILED", f"ONNX Runtime failed on tiles {tiles.shape}: {error}.", "Report it."
            ) from error
        return finite(np.moveaxis(logits, 1, -1), self._identity)

    def close(self) -> None:
        """Free the session."""
        self._session = None
