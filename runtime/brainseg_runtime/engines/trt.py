"""TensorRT: a plan that was built for this GPU, two tiles in flight at a time."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from math import prod
from typing import cast

import numpy as np
from numpy.typing import NDArray

from brainseg_runtime.engines.base import EngineIdentity, finite
from brainseg_runtime.engines.cuda import DeviceBuffer, PinnedArray, Stream, free_bytes, use
from brainseg_runtime.errors import BrainsegError, BudgetExceeded, BundleInvalid, EngineUnavailable
from brainseg_runtime.gpu import Gpu
from brainseg_runtime.plans.api import ICudaEngine, IExecutionContext, RtxCudaEngine, Runtime, TensorRT
from brainseg_runtime.plans.hearing import logger
from brainseg_runtime.plans.local import LocalPlan, plan_for
from brainseg_runtime.plans.request import Profile, largest_batch
from brainseg_runtime.spec import ModelSpec

__all__ = ["LANES", "TrtEngine", "parts"]

Array = NDArray[np.float32]

LANES = 2
"""Parts of a batch that are in flight: while one computes, the other is copied."""

ALIGNMENT = 256
"""Bytes: where TensorRT takes a tensor to begin."""


class TrtEngine:
    """Runs the plan of a graph on a GPU.

    Whoever makes one has asked the driver for the GPU before: TensorRT's runtime ends the process where
    there is none.
    """

    def __init__(self, graph: bytes, spec: ModelSpec, precision: str, gpu: Gpu) -> None:
        """Load the plan of a graph, N C i j k -> N R i j k; build it where the cache has none.

        Raises:
            EngineUnavailable: ``E_ENGINE_MISSING``, ``E_PLAN``, ``E_PLAN_CACHE``, ``E_ENGINE_FAILED``.
            BundleInvalid: ``E_BUNDLE_DAMAGED`` for a graph that TensorRT cannot take, ``E_SPEC`` for one
                whose tensors are not named as in the spec.
            OutputUnwritable: ``E_OUTPUT`` where the plan cannot be kept.
        """
        # Before a plan is built: TensorRT builds for the GPU that the thread works on.
        use(gpu.index)
        local = plan_for(graph, spec, precision, gpu)
        self._gpu, self._spec = gpu, spec
        self._identity = EngineIdentity(
            "trt", local.flavour.title, gpu.device, precision, local.trt.__version__
        )
        self._profiles = local.request.profiles
        self._runtime = local.trt.Runtime(logger(local.trt))
        self._engine: ICudaEngine | None = _loaded(local, self._runtime)
        _require_tensors(local.trt, self._engine, spec)
        self._lanes: list[_Lane] = []
        try:
            for _ in range(LANES):
                self._lanes.append(_Lane(local, self._engine, spec, self._profiles))
        except BaseException:
            self.close()
            raise

    @property
    def identity(self) -> EngineIdentity:
        """Which TensorRT, on which GPU."""
        return self._identity

    def infer(self, tiles: Array) -> Array:
        """Logits of a batch of tiles, (N, i, j, k, C) -> (N, i, j, k, R).

        Raises:
            BudgetExceeded: ``E_MEMORY`` before anything runs that would not fit on the GPU.
            EngineUnavailable: ``E_ENGINE_FAILED``.
        """
        channels_first = np.moveaxis(tiles, -1, 1)
        most = self._most(channels_first.shape)
        logits = np.empty((len(tiles), self._spec.output_channels, *tiles.shape[1:4]), dtype=np.float32)
        try:
            for n, part in enumerate(parts(len(tiles), most)):
                lane = self._lanes[n % LANES]
                lane.finish()
                lane.start(channels_first[part], logits[part])
            for lane in self._lanes:
                lane.finish()
        except BaseException:
            for lane in self._lanes:
                lane.abandon()
            raise
        return finite(np.moveaxis(logits, 1, -1), self._identity)

    def infer_at(self, tiles: int, logits: int, shape: tuple[int, ...]) -> None:
        """Logits of tiles at an address of the GPU, (N, C, i, j, k) -> (N, R, i, j, k) at another.

        Nothing is copied, so one lane computes all, as many at once as the plan takes.

        Raises:
            BudgetExceeded: ``E_MEMORY`` before anything runs that would not fit on the GPU.
            EngineUnavailable: ``E_ENGINE_FAILED``.
        """
        most, lane = self._most(shape), self._lanes[0]
        size, out = 4 * prod(shape[1:]), 4 * self._spec.output_channels * prod(shape[2:])
        lane.finish()
        try:
            for first in range(0, shape[0], most):
                count = min(most, shape[0] - first)
                lane.run_at(tiles + first * size, logits + first * out, (count, *shape[1:]))
        except BaseException:
            lane.abandon()
            raise

    def _most(self, shape: tuple[int, ...]) -> int:
        """How many tiles of a batch (N, C, i, j, k) go at once; this thread works on the GPU from now on."""
        if self._engine is None:
            raise EngineUnavailable("E_ENGINE_FAILED", "the engine is closed.", "Load the model again.")
        use(self._gpu.index)
        most = largest_batch(self._profiles, shape)
        if not most:
            bounds = "; ".join(f"{p.smallest} to {p.largest}" for p in self._profiles)
            raise _failed(f"tiles {shape} are beyond the plan's shapes, {bounds}")
        return most

    def close(self) -> None:
        """Give back the GPU's memory; contexts go before the engine that they are of."""
        if self._engine is not None:
            # A GPU that failed refuses this, too; what it failed with was said when it did.
            with suppress(BrainsegError):
                use(self._gpu.index)
            for lane in self._lanes:
                lane.close()
            self._lanes.clear()
            self._engine = None


def parts(count: int, most: int) -> Iterator[slice]:
    """How a batch is handed to the lanes: in halves where there are two tiles, ``most`` at a time."""
    size = min(most, -(-count // LANES))
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


class _Lane:
    """One execution context with a stream and buffers of its own; contexts must not be shared."""

    def __init__(
        self, local: LocalPlan, engine: ICudaEngine, spec: ModelSpec, profiles: tuple[Profile, ...]
    ) -> None:
        self._trt, self._spec, self._profiles = local.trt, spec, profiles
        with logger(local.trt).heard() as heard:
            context = _context(local, engine, spec)
        if context is None:
            raise _failed("no execution context is made", heard.errors)
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
                raise _failed(f"tiles {shape} do not lie at multiples of {ALIGNMENT} bytes")
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
            raise _failed("an address is not taken", errors)
        if not self._context.execute_async_v3(self._stream.handle):
            raise _failed(f"tiles {self._shape} do not run", errors)

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
            raise _failed(f"profile {profile} is not taken", errors)
        self._profile = profile
        self._stream.wait()
        names = self._spec.input_name, self._spec.output_name
        if not context.set_input_shape(names[0], shape) or _unsettled(context):
            raise _failed(f"the shape {shape} is not taken", errors)
        if tuple(context.get_tensor_shape(names[1])) != out:
            raise _failed(f"{tuple(context.get_tensor_shape(names[1]))} comes out, where {out} should")
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
            raise _failed(f"{self._scratch.bytes} bytes of memory are not taken", errors)
        self._shape = shape


def _loaded(local: LocalPlan, runtime: Runtime) -> ICudaEngine:
    with logger(local.trt).heard() as heard:
        engine = runtime.deserialize_cuda_engine(local.plan)
    if engine is None:
        raise EngineUnavailable(
            "E_ENGINE_FAILED",
            f"{local.flavour.title} does not load the plan that was built here: {' | '.join(heard.errors)}.",
            "Remove it (brainseg plans prune --all) and try again; else use another engine.",
        )
    return engine


def _require_tensors(trt: TensorRT, engine: ICudaEngine, spec: ModelSpec) -> None:
    names = [engine.get_tensor_name(n) for n in range(engine.num_io_tensors)]
    found = {name: (engine.get_tensor_mode(name), engine.get_tensor_dtype(name)) for name in names}
    wanted = {
        spec.input_name: (trt.TensorIOMode.INPUT, trt.DataType.FLOAT),
        spec.output_name: (trt.TensorIOMode.OUTPUT, trt.DataType.FLOAT),
    }
    if found != wanted:
        raise BundleInvalid(
            "E_SPEC", f"the plan's tensors are {found}, not {wanted}.", "Export the model again."
        )


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


def _failed(what: str, errors: list[str] | None = None) -> BrainsegError:
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
