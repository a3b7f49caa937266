"""Whether kernels compute where they run what numpy computes, and an engine in that memory what it must."""

from dataclasses import dataclass, replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from brainseg_runtime import selftest
from brainseg_runtime.bundle import Golden
from brainseg_runtime.certainty import Survey
from brainseg_runtime.engines.base import DeviceEngine, Engine, EngineIdentity, finite
from brainseg_runtime.errors import BrainsegError, EngineUnavailable
from brainseg_runtime.extras import there
from brainseg_runtime.geometry import Geometry
from brainseg_runtime.gpu import Gpu
from brainseg_runtime.kernels.card import Card
from brainseg_runtime.memory import Plan
from brainseg_runtime.preprocess import examine, prepare, restore
from brainseg_runtime.resident import Decided, Resident
from brainseg_runtime.spec import Label, Modality, ModelSpec, Region
from brainseg_runtime.tiles import Tiling, predict
from brainseg_runtime.volume import Volume

__all__ = ["Fetching", "Summing", "prove", "proven"]

Tiles = NDArray[np.float32]


def proven(engine: Engine, golden: Golden, gpu: Gpu) -> tuple[Resident | None, str]:
    """An engine with its GPU for scans to stay on, if all is right there; else none, and why."""
    if not there("cuda.bindings"):
        return None, "cuda-bindings is not installed"
    # Imported here so that importing the runtime needs no CUDA.
    from brainseg_runtime.kernels.cuda_card import CudaCard

    assert isinstance(engine, DeviceEngine), "as all are that compute on GPUs"
    card: Card | None = None
    try:
        card = CudaCard(gpu)
        resident = Resident(engine, card)
        prove(resident, golden)
        card.give_back()
    except BrainsegError as error:
        if card is not None:
            card.close()
        return None, str(error)
    return resident, ""


def prove(resident: Resident, golden: Golden) -> None:
    """See that scans may stay on a card: a small one comes back as from numpy, and the known answer is met.

    Raises:
        EngineUnavailable: ``E_ENGINE_FAILED`` naming what differs, or where the card fails.
        BudgetExceeded: ``E_MEMORY``.
        BundleInvalid: ``E_SELFTEST``.
    """
    for normalisation in ("zscore", "none"):
        _prove_kernels(resident.card, replace(SPEC, normalisation=normalisation))
    selftest.check(Fetching(resident, golden.logits.shape[-1]), golden)


def _prove_kernels(card: Card, spec: ModelSpec) -> None:
    volume, network = _volume(), Summing(spec, card)
    prepared, examined = prepare(volume, spec), examine(volume, spec)
    tiling = Tiling.of(prepared.placement.grid, spec)
    logits = predict(prepared.data, network, spec, BATCH, tiling)
    expected, found = Survey(spec), Survey(spec)
    labels = restore(logits, prepared.placement, expected)
    given, planned = (volume.data, examined, spec), Plan(tiling, BATCH, 0, back="labels")
    decided = Resident(network, card).compute(*given, planned)
    seen = Resident(network, card).compute(*given, replace(planned, back="logits"))
    assert isinstance(decided, Decided), "as was asked for"
    found.count(decided.counts)
    same = {
        "logits": not isinstance(seen, Decided) and np.array_equal(seen, logits),
        "labels": np.array_equal(decided.labels, labels),
        "counts": found.ranges(1000.0) == expected.ranges(1000.0),
    }
    try:
        Resident(Summing(spec, card, broken=True), card).compute(*given, planned)
        same["refusal of what is not finite"] = False
    except EngineUnavailable:
        pass
    if not all(same.values()):
        wrong = ", ".join(name for name, right in same.items() if not right)
        raise EngineUnavailable(
            "E_ENGINE_FAILED", f"the kernels' {wrong} are not those of numpy.", "Report it, and the GPU."
        )


BATCH = 3
"""Tiles at a time: the last pass has fewer."""

SPEC = ModelSpec(
    name="proof",
    modalities=(Modality("a", ("a",)), Modality("b", ("b",))),
    reference="a",
    labels=(Label(1, "inner"), Label(2, "outer"), Label(3, "core")),
    regions=(Region("outer", (1, 2, 3), 0.4), Region("inner", (1, 3), 0.5), Region("core", (3,), 0.6)),
    spacing=(1.3, 0.9, 1.6),
    tile=(8, 8, 8),
    divisor=(4, 4, 4),
)


def _volume() -> Volume:
    """A blob on an oblique grid of unequal spacing and turned axes; one channel's background is not 0."""
    shape, rng = (17, 15, 14), np.random.default_rng(1)
    affine = np.array([[0.1, -1.2, 0, 3], [0, 0.2, 1.5, -4], [-1.0, 0, 0.1, 5], [0, 0, 0, 1]])
    i, j, k = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    inside = (i - 0.1) ** 2 + j**2 + (k + 0.1) ** 2 < 0.7
    channels = [np.where(inside, rng.normal(100, 30, shape), empty) for empty in (0.0, -3.5)]
    data = np.asfortranarray(np.stack(channels, axis=-1), dtype=np.float32)  # as files are read
    return Volume(data, Geometry(shape, affine), scan="proof")


@dataclass(frozen=True, eq=False)
class Summing:
    """A network of sums, taken by numpy in one order wherever its tiles lie, so that every bit is known."""

    spec: ModelSpec
    card: Card
    broken: bool = False
    """Whether one logit is infinite."""

    @property
    def identity(self) -> EngineIdentity:
        """Numpy."""
        return EngineIdentity("summing", "numpy", "cpu", "fp32", np.__version__)

    def infer(self, tiles: Tiles) -> Tiles:
        """Channels weighted and added up, (N, i, j, k, C) -> (N, i, j, k, R)."""
        logits = np.zeros((*tiles.shape[:4], self.spec.output_channels), dtype=np.float32)
        for r in range(logits.shape[-1]):
            for c in range(tiles.shape[-1]):
                logits[..., r] += tiles[..., c] * np.float32(0.7 - 0.4 * r + 0.3 * c * (-1) ** r)
        return logits

    def infer_at(self, tiles: int, logits: int, shape: tuple[int, ...]) -> None:
        """The same of tiles (N, C, i, j, k) on the card."""
        answer = self.infer(np.moveaxis(self.card.get(tiles, shape, np.float32), 1, -1))
        if self.broken:
            answer.flat[-1] = np.inf
        self.card.write(logits, np.moveaxis(answer, -1, 1))

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True, eq=False)
class Fetching:
    """An engine that computes on a card, with its tiles brought there and its logits fetched."""

    resident: Resident
    channels: int
    """Of the logits, R."""

    @property
    def identity(self) -> EngineIdentity:
        """The engine's."""
        return self.resident.engine.identity

    def infer(self, tiles: Tiles) -> Tiles:
        """Logits of a batch of tiles, (N, i, j, k, C) -> (N, i, j, k, R)."""
        card, engine = self.resident.card, self.resident.engine
        card.begin()
        given = np.moveaxis(tiles, -1, 1)
        out = (len(given), self.channels, *given.shape[2:])
        logits = card.zeros(4 * prod(out))
        engine.infer_at(card.put(given), logits, given.shape)
        return finite(np.moveaxis(card.get(logits, out, np.float32), 1, -1), self.identity)

    def close(self) -> None:
        """The engine is its owner's."""
