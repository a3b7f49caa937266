"""TensorRT: a plan that was built for this GPU, two tiles in flight at a time."""

from collections.abc import Iterator
from contextlib import suppress
from math import prod

import numpy as np
from numpy.typing import NDArray

from brainseg_runtime.engines.base import EngineIdentity, finite
from brainseg_runtime.engines.cuda import use
from brainseg_runtime.engines.lane import Lane, failed
from brainseg_runtime.errors import BrainsegError, BundleInvalid, EngineUnavailable
from brainseg_runtime.gpu import Gpu
from brainseg_runtime.plans.api import ICudaEngine, Runtime, TensorRT
from brainseg_runtime.plans.hearing import logger
from brainseg_runtime.plans.local import LocalPlan, plan_for
from brainseg_runtime.plans.request import largest_batch
from brainseg_runtime.spec import ModelSpec

__all__ = ["LANES", "TrtEngine", "parts"]

Array = NDArray[np.float32]

LANES = 2
"""Parts of a batch that are in flight: while one computes, the other is copied."""


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
        self._lanes: list[Lane] = []
        try:
            for _ in range(LANES):
                self._lanes.append(Lane(local, self._engine, spec, self._profiles))
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
            raise failed(f"tiles {shape} are beyond the plan's shapes, {bounds}")
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
