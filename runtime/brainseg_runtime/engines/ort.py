"""ONNX Runtime: the engine that runs everywhere, on a CPU or on an NVIDIA GPU."""

from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from brainseg_runtime.engines.base import EngineIdentity, finite
from brainseg_runtime.errors import BrainsegError, BudgetExceeded, BundleInvalid, EngineUnavailable
from brainseg_runtime.gpu import Gpu, find, free_memory
from brainseg_runtime.spec import ModelSpec

__all__ = ["OrtEngine"]

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

CUDA_OPTIONS = {
    # FP32 means FP32: TensorFloat-32 keeps 10 of its 23 bits.
    "use_tf32": "0",
    # Heads differ in size, and an exhaustive search starts anew with every size.
    "cudnn_conv_algo_search": "HEURISTIC",
    "cudnn_conv_use_max_workspace": "1",
    # A doubling arena would take twice what was planned for.
    "arena_extend_strategy": "kSameAsRequested",
}


class OrtEngine:
    """Runs a graph with ONNX Runtime."""

    def __init__(
        self, graph: bytes, spec: ModelSpec, precision: str, device: str = "cpu", threads: int | None = None
    ) -> None:
        """Open a session on the bytes of a graph, N C i j k -> N R i j k.

        On a GPU ONNX Runtime is silenced for the whole process: it has no other way.

        Raises:
            EngineUnavailable: ``E_ENGINE_DEVICE`` where the device's provider is not the one in use,
                ``E_ENGINE_MISSING`` where this ONNX Runtime has none for GPUs.
            BundleInvalid: ``E_BUNDLE_DAMAGED`` for a graph that does not load, ``E_SPEC`` for one
                whose tensors are not named as in the spec.
        """
        kind = device.partition(":")[0]
        provider = PROVIDERS.get(kind)
        if provider is None:
            raise EngineUnavailable(
                "E_ENGINE_DEVICE",
                f"engine ort does not run on device {device!r}.",
                "Use --device cpu or cuda:0.",
            )
        gpu = None if kind == "cpu" else find(device)
        providers: list[Any] = [provider]
        said = ""
        if gpu is not None:
            device = gpu.device
            said = _require_cuda()
            # It tells stderr of each algorithm that cuDNN does not have; what fails in the end is raised.
            onnxruntime.set_default_logger_severity(4)
            providers = [(provider, {"device_id": str(gpu.index), **CUDA_OPTIONS})]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if gpu is not None:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        # session.set_denormal_as_zero stays off: it changes the arithmetic of the caller's own thread.
        try:
            # It prints what it thinks of a provider; stdout is not its place. By itself it would go on with
            # the CPU, also where a GPU only lacks memory.
            with redirect_stdout(StringIO()) as printed:
                session = onnxruntime.InferenceSession(graph, options, providers=providers, enable_fallback=0)
        # ONNX Runtime raises a class of its own for each status code, over plain RuntimeError and Exception.
        except Exception as error:
            if gpu is not None and (_lacks_memory(error) or _crowded(error, gpu)):
                raise BudgetExceeded(
                    "E_MEMORY", f"the model does not fit on {device}.", "Close what else runs on the GPU."
                ) from error
            if gpu is not None and _lacks_cuda(error):
                raise _not_there(f"does not compute on {device}: {_short(error)}.", said) from error
            raise BundleInvalid(
                "E_BUNDLE_DAMAGED", f"ONNX Runtime cannot load the graph: {error}.", "Export it again."
            ) from error
        taken = session.get_providers()[0]
        if taken != provider:
            raise _not_there(f"took {taken} where {provider} was asked for.", said, printed.getvalue())
        if gpu is not None:
            number = session.get_provider_options()[provider].get("device_id")
            if number != str(gpu.index):
                raise _not_there(f"took GPU {number} where {device} was asked for.", said)
        names = [session.get_inputs()[0].name], [session.get_outputs()[0].name]
        if names != ([spec.input_name], [spec.output_name]):
            raise BundleInvalid(
                "E_SPEC",
                f"the graph's tensors are {names}, the spec's {spec.input_name}, {spec.output_name}.",
                "Export the model again.",
            )
        self._session: onnxruntime.InferenceSession | None = session
        self._spec = spec
        self._memory = ("cpu", 0) if gpu is None else ("cuda", gpu.index)
        self._buffers = None if gpu is None else Buffers(session, spec, *self._memory)
        self._identity = EngineIdentity("ort", provider, device, precision, onnxruntime.__version__)

    @property
    def identity(self) -> EngineIdentity:
        """The provider that the session really has."""
        return self._identity

    def infer(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of a batch of tiles, (N, i, j, k, C) -> (N, i, j, k, R); ``E_MEMORY`` if a GPU lacks it."""
        session = self._opened()
        channels_first = np.ascontiguousarray(np.moveaxis(tiles, -1, 1), dtype=np.float32)
        try:
            if self._buffers is not None:
                logits = self._buffers.run(channels_first)
            else:
                names = [self._spec.output_name]
                (logits,) = session.run(names, {self._spec.input_name: channels_first})
        except Exception as error:
            raise self._failed(tiles.shape, error) from error
        return finite(np.moveaxis(logits, 1, -1), self._identity)

    def infer_at(self, tiles: int, logits: int, shape: tuple[int, ...]) -> None:
        """Logits of tiles at an address of the device, (N, C, i, j, k) -> (N, R, i, j, k) at another."""
        session = self._opened()
        out = (shape[0], self._spec.output_channels, *shape[2:])
        try:
            # Each time anew, as in ``Buffers``: what is bound may be a copy of the moment.
            binding = session.io_binding()
            binding.bind_input(self._spec.input_name, *self._memory, np.float32, list(shape), tiles)
            binding.bind_output(self._spec.output_name, *self._memory, np.float32, list(out), logits)
            binding.synchronize_inputs()
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()
        except Exception as error:
            raise self._failed(shape, error) from error

    def _opened(self) -> onnxruntime.InferenceSession:
        if self._session is None:
            raise EngineUnavailable("E_ENGINE_FAILED", "the engine is closed.", "Load the model again.")
        return self._session

    def _failed(self, shape: tuple[int, ...], error: Exception) -> BrainsegError:
        if self._buffers is not None and _lacks_memory(error):
            return BudgetExceeded(
                "E_MEMORY",
                f"tiles {shape} do not fit on {self._identity.device}.",
                "Give a smaller --batch or --tile.",
            )
        return EngineUnavailable(
            "E_ENGINE_FAILED", f"ONNX Runtime failed on tiles {shape}: {_short(error)}.", "Report it."
        )

    def close(self) -> None:
        """Free the session."""
        self._buffers = None
        self._session = None


class Buffers:
    """Memory of a device that a session reads tiles from and writes logits to, kept from tile to tile."""

    def __init__(
        self, session: onnxruntime.InferenceSession, spec: ModelSpec, device: str, index: int
    ) -> None:
        self._session, self._spec, self._device, self._index = session, spec, device, index
        self._binding = session.io_binding()
        self._tiles: onnxruntime.OrtValue | None = None
        self._logits: onnxruntime.OrtValue | None = None

    def run(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of tiles, (N, C, i, j, k) -> (N, R, i, j, k)."""
        if self._tiles is None or tuple(self._tiles.shape()) != tiles.shape:
            out = (len(tiles), self._spec.output_channels, *tiles.shape[2:])
            # What is held goes first: the device may have no room for old and new.
            self._tiles = self._logits = None
            self._binding.clear_binding_inputs()
            self._binding.clear_binding_outputs()
            # Both or none: where the second does not fit, the first must not seem to have its fellow.
            self._tiles, self._logits = self._empty(tiles.shape), self._empty(out)
            self._binding.bind_ortvalue_output(self._spec.output_name, self._logits)
        self._tiles.update_inplace(tiles)
        # Each time anew: where the first node runs on another device, what is bound is a copy of the moment.
        self._binding.bind_ortvalue_input(self._spec.input_name, self._tiles)
        self._session.run_with_iobinding(self._binding)
        assert self._logits is not None
        return np.array(self._logits.numpy())

    def _empty(self, shape: tuple[int, ...]) -> "onnxruntime.OrtValue":
        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, self._device, self._index)


def _lacks_memory(error: Exception) -> bool:
    """Whether a GPU has too little memory: said by an arena, by CUDA, by cuDNN or by cuBLAS."""
    words = str(error).lower()
    found = ("failed to allocate memory", "smaller than requested bytes", "out of memory", "alloc_failed")
    return any(part in words for part in found)


def _lacks_cuda(error: Exception) -> bool:
    """Whether a session fails for what is installed or for the GPU, not for its graph."""
    words = str(error).lower()
    return any(part in words for part in ("cuda", "cudnn", "cublas", "assigned to the default cpu ep"))


HANDLES = 1_000_000_000
"""Bytes that cuBLAS, cuDNN and their kernels take before any tile; on an H200 600 MB did not suffice."""


def _crowded(error: Exception, gpu: Gpu) -> bool:
    """Whether cuBLAS or cuDNN did not start where there is hardly room for them: they name other reasons."""
    if not any(part in str(error).lower() for part in ("cudnn", "cublas")):
        return False
    try:
        return free_memory(gpu) < HANDLES
    except EngineUnavailable:  # after some errors the driver says no more
        return False


def _short(said: object) -> str:
    """In one line, without the end of what is endless."""
    return " ".join(str(said).split())[:500]


def _not_there(what: str, *said: str) -> EngineUnavailable:
    """The error for a GPU that ONNX Runtime does not compute on, and what it said meanwhile."""
    return EngineUnavailable(
        "E_ENGINE_DEVICE",
        f"ONNX Runtime {what} {_short(' '.join(said))}".rstrip(),
        "Check the installation of onnxruntime, and of CUDA and cuDNN (docs/gpu.md).",
    )


def _require_cuda() -> str:
    """Refuse an ONNX Runtime without CUDA; let one that has it find NVIDIA's libraries among the packages.

    What it says of those that it does not find.
    """
    if PROVIDERS["cuda"] not in onnxruntime.get_available_providers():
        raise EngineUnavailable(
            "E_ENGINE_MISSING",
            "the onnxruntime that is installed computes on CPUs only.",
            'Install it: pip uninstall -y onnxruntime && pip install "brainseg-runtime[gpu]"',
        )
    with redirect_stdout(StringIO()) as printed:
        onnxruntime.preload_dlls()
    return printed.getvalue()
