"""One run of a TensorRT plan at a time: its context, its stream, its memory."""

from collections.abc import Sequence
from contextlib import suppress
from math import prod
from typing import cast

import numpy as np
from numpy.typing import NDArray

from brainseg_runtime.engines.cuda import DeviceBuffer, PinnedArray, Stream, free_bytes
from brainseg_runtime.errors import BrainsegError, BudgetExceeded, EngineUnavailable
from brainseg_runtime.plans.api import ICudaEngine, IExecutionContext, RtxCudaEngine
from brainseg_runtime.plans.hearing import logger
from brainseg_runtime.plans.local import LocalPlan
from brainseg_runtime.plans.request import Profile
from brainseg_runtime.spec import ModelSpec

__all__ = ["Lane", "failed"]

Array = NDArray[np.float32]

ALIGNMENT = 256
"""Bytes: where TensorRT takes a tensor to begin."""


class Lane:
    """One execution context with a stream and buffers of its own; contexts must not be shared."""

    def __init__(
        self, local: LocalPlan, engine: ICudaEngine, spec: ModelSpec, profiles: tuple[Profile, ...]
    ) -> None:
        self._trt, self._spec, self._profiles = local.trt, spec, profiles
        with logger(local.trt).heard() as heard:
            context = _context(local, engine, spec)
        if context is None:
            raise failed("no execution context is made", heard.errors)
        self._context = context
        self._stream = Stream()
        self._inputs, self._outputs = PinnedArray(), PinnedArray()
        self._device_inputs, self._device_outputs, self._scratch = (DeviceBuffer() for _ in range(3))
        self._shape: tuple[int, ...] = ()
        self._profile = -1
        self._pending: tuple[Array, Array] | None = None

    def start(self, tiles: Array, logits: Array) -> None:
        """Upload tiles (N, C, i, j, k), run, download; ``logits`` is filled by ``finish``."""
        with logger(self._trt).heard() as heard:
            shape = tiles.shape
            out = self._out(shape)
            pinned_in, pinned_out = self._inputs.shaped(shape), self._outputs.shaped(out)
            own = [(self._device_inputs, 4 * prod(shape)), (self._device_outputs, 4 * prod(out))]
            if shape != self._shape or any(buffer.bytes < size for buffer, size in own):
                self._arrange(shape, own, heard.errors)
            pinned_in[...] = tiles
            self._stream.upload(self._device_inputs, self._inputs)
            self._run(self._device_inputs.pointer, self._device_outputs.pointer, heard.errors)
            self._stream.download(self._outputs, self._device_outputs)
            self._pending = pinned_out, logits

    def run_at(self, tiles: int, logits: int, shape: tuple[int, ...]) -> None:
        """Run tiles (N, C, i, j, k) that lie on the GPU, and wait; logits (N, R, i, j, k) stay there."""
        with logger(self._trt).heard() as heard:
            if tiles % ALIGNMENT or logits % ALIGNMENT:
                raise failed(f"tiles {shape} do not lie at multiples of {ALIGNMENT} bytes")
            if shape != self._shape:
                self._arrange(shape, [], heard.errors)
            self._run(tiles, logits, heard.errors)
        self._stream.wait()

    def finish(self) -> None:
        """Wait for what was started, if anything was."""
        if self._pending is not None:
            (pinned, logits), self._pending = self._pending, None
            self._stream.wait()
            logits[...] = pinned

    def abandon(self) -> None:
        """Wait for what runs and forget it: something else went wrong, and memory is still written to."""
        self._pending = None
        self._shape = ()
        with suppress(BrainsegError):
            self._stream.wait()

    def close(self) -> None:
        """Give back memory and stream."""
        self.abandon()
        del self._context
        buffers = self._inputs, self._outputs, self._device_inputs, self._device_outputs, self._scratch
        for held in (*buffers, self._stream):
            with suppress(BrainsegError):
                held.close()

    def _out(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[0], self._spec.output_channels, *shape[2:])

    def _run(self, tiles: int, logits: int, errors: list[str]) -> None:
        """Have the context begin with tiles of the shape that it was made ready for."""
        taken = (self._spec.input_name, tiles), (self._spec.output_name, logits)
        if not all(self._context.set_tensor_address(name, address) for name, address in taken):
            raise failed("an address is not taken", errors)
        if not self._context.execute_async_v3(self._stream.handle):
            raise failed(f"tiles {self._shape} do not run", errors)

    def _arrange(
        self, shape: tuple[int, ...], own: list[tuple[DeviceBuffer, int]], errors: list[str]
    ) -> None:
        """Make the context ready for tiles of a shape, and see that they fit before anything runs.

        ``own`` are the buffers that the tiles need beside the context's, and their bytes; ``errors`` is what
        TensorRT complains of meanwhile.
        """
        self._shape = ()
        context, stream, out = self._context, self._stream.handle, self._out(shape)
        profile = next(n for n, bounds in enumerate(self._profiles) if bounds.holds(shape))
        if profile != self._profile and not context.set_optimization_profile_async(profile, stream):
            raise failed(f"profile {profile} is not taken", errors)
        self._profile = profile
        self._stream.wait()
        names = self._spec.input_name, self._spec.output_name
        if not context.set_input_shape(names[0], shape) or _unsettled(context):
            raise failed(f"the shape {shape} is not taken", errors)
        if tuple(context.get_tensor_shape(names[1])) != out:
            raise failed(f"{tuple(context.get_tensor_shape(names[1]))} comes out, where {out} should")
        complaints = len(errors)
        needed = [*own, (self._scratch, max(ALIGNMENT, context.update_device_memory_size_for_shapes()))]
        # What has to grow is given back first, so a buffer counts only while it is kept.
        growing = sum(size for buffer, size in needed if size > buffer.bytes)
        for buffer, size in needed:
            if size > buffer.bytes:
                buffer.close()
        if growing > (free := free_bytes()):
            raise BudgetExceeded(
                "E_MEMORY",
                f"tiles {shape} take {growing // 1_000_000} MB more on the GPU, where {free // 1_000_000} MB "
                "are free.",
                "Give a smaller --batch or --tile, or close what else runs on the GPU.",
            )
        for buffer, size in needed:
            buffer.reserve(size)
        context.set_device_memory(self._scratch.pointer, self._scratch.bytes)
        # Neither call says otherwise that it failed: one gives 0, as for a plan that needs none, one nothing.
        if errors[complaints:]:
            raise failed(f"{self._scratch.bytes} bytes of memory are not taken", errors)
        self._shape = shape


def _context(local: LocalPlan, engine: ICudaEngine, spec: ModelSpec) -> IExecutionContext | None:
    """A context without memory of its own, which would be that of the plan's largest shapes."""
    trt = local.trt
    own = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    if local.flavour.name != "rtx":
        return engine.create_execution_context(own)
    # TensorRT-RTX by itself exchanges kernels for better ones while it runs, and one tile would give now
    # these logits, now those. Tiles are of one shape, and its kernels worth the wait; every head has its own.
    strategy = trt.DynamicShapesKernelSpecializationStrategy
    rtx = cast(RtxCudaEngine, engine)
    config = rtx.create_runtime_config()
    config.set_execution_context_allocation_strategy(own)
    config.dynamic_shapes_kernel_specialization_strategy = (
        strategy.EAGER if spec.scheme == "tiles" else strategy.NONE
    )
    return rtx.create_execution_context(config)


def _unsettled(context: IExecutionContext) -> Sequence[str]:
    """The tensors whose shapes are not known, all being given; shapes that contradict count as well."""
    try:
        return context.infer_shapes()
    except RuntimeError as error:
        return [str(error)]


def failed(what: str, errors: list[str] | None = None) -> BrainsegError:
    """The error for what TensorRT did not do, ``E_MEMORY`` where it says that memory lacks."""
    said = f" It says: {' | '.join(errors)[:1000]}" if errors else ""
    if "outofmemory" in said.replace(" ", "").lower():
        return BudgetExceeded(
            "E_MEMORY",
            f"TensorRT: {what}.{said}",
            "Give a smaller --batch or --tile; see what else runs there.",
        )
    return EngineUnavailable(
        "E_ENGINE_FAILED", f"TensorRT: {what}.{said}", "Use another engine, and report it."
    )
