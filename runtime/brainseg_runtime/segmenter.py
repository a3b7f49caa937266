"""A model, opened and ready: one volume in, one segmentation out."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from brainseg_runtime import selftest
from brainseg_runtime.bundle import Bundle, Precision
from brainseg_runtime.certainty import Survey
from brainseg_runtime.default_model import default_model
from brainseg_runtime.engines.base import Engine
from brainseg_runtime.engines.choice import EngineName, choose, default_device, open_engine
from brainseg_runtime.engines.mean import MeanEngine, mirrors_of
from brainseg_runtime.engines.timed import Deadline, TimedEngine
from brainseg_runtime.ensemble import identity_of, joint_spec
from brainseg_runtime.errors import BudgetExceeded, BundleInvalid, UsageRefused
from brainseg_runtime.fingerprint import fingerprint
from brainseg_runtime.gpu import find, free_memory
from brainseg_runtime.kernels.proof import proven
from brainseg_runtime.labels import drop_specks
from brainseg_runtime.memory import (
    ALONE,
    MEGABYTE,
    Beside,
    Model,
    Plan,
    halves,
    least,
    machine_memory,
    plan,
    tiles_alone,
)
from brainseg_runtime.preprocess import Examined, Placement, Prepared, examine, place, prepare, restore
from brainseg_runtime.quality import quality_flags
from brainseg_runtime.resident import Decided, Resident, comes_back
from brainseg_runtime.spec import ModelSpec
from brainseg_runtime.tiles import predict
from brainseg_runtime.tumour_type import tumour_type
from brainseg_runtime.volume import Outline, Segmentation, Volume

__all__ = ["Computed", "Ready", "Segmenter", "load"]


@dataclass(frozen=True, eq=False)
class Ready:
    """A scan on the network's grid, or what a GPU needs to bring it there, and how it will be computed."""

    volume: Volume
    prepared: Prepared | Examined
    plan: Plan
    probabilities: bool
    """Whether maps of them are wanted."""
    seconds: Mapping[str, float]
    """Of every stage so far."""


@dataclass(frozen=True, eq=False)
class Computed:
    """A scan and the network's answer."""

    ready: Ready
    answer: NDArray[np.float32] | Decided
    """Logits of the network's grid, (i, j, k, R), or what a GPU decided by them."""
    seconds: Mapping[str, float]


class Segmenter(AbstractContextManager["Segmenter"]):
    """Segments scans with one model on one engine, and closes the engine when done."""

    def __init__(
        self,
        spec: ModelSpec,
        engine: Engine,
        *,
        batch: int = 1,
        model: Mapping[str, str] | None = None,
        why: str = "as given",
        max_memory: int | None = None,
        gpu_memory: int | None = None,
        options: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        resident: Resident | None = None,
        weights: int = 0,
    ) -> None:
        """``batch`` tiles are computed at a time; results say ``model``, and ``why`` it is this engine.

        ``options`` are what else the results must tell of how they were computed.
        ``max_memory`` in bytes, by default the machine's: a scan that would take more is refused.
        ``gpu_memory`` in bytes is what was free on the GPU that the engine computes on, if it does.
        ``timeout`` in seconds of a scan's own stages; it is looked at between them and around each pass,
        where there are several engines or mirror images around each of theirs.
        ``resident`` is the engine and its GPU, for scans to stay on where ``gpu_memory`` has room; the GPU's
        memory is given back with the engine.
        ``weights``: bytes of the graphs that the engine holds.
        """
        self.spec = spec
        self.engine = engine
        self.batch = batch
        self.model = dict(model or {"name": spec.name})
        self.why = why
        self.max_memory = max_memory
        self.gpu_memory = gpu_memory
        self.options = dict(options or {})
        self.timeout = timeout
        self.resident = resident
        several = engine if isinstance(engine, MeanEngine) else None
        self.answering = Model(
            engine.identity.engine, several.members if several else 1, several is not None, weights
        )

    @property
    def limit(self) -> int:
        """Bytes of memory that the process may take."""
        return machine_memory() if self.max_memory is None else self.max_memory

    def share_gpu(self, processes: int) -> None:
        """Plan with one part of so many of what is free on the GPU now; without a GPU nothing changes.

        Raises:
            EngineUnavailable: ``E_ENGINE_DEVICE`` where the driver does not say.
        """
        if self.gpu_memory is not None:
            free = free_memory(find(self.engine.identity.device))
            self.gpu_memory = free // self.answering.members // processes

    def require_room(self, scan: str, outline: Outline, kept: int = 0) -> None:
        """See that a scan may fit, before any voxel of it is read.

        ``kept`` are bytes that the engine holds from earlier scans.

        Raises:
            BudgetExceeded: ``E_MEMORY`` where reading it and finding its brain takes more than there is.
        """
        needed = self.answering.process + kept + least(outline, self.spec)
        if needed > self.limit:
            raise BudgetExceeded(
                "E_MEMORY",
                f"scan {scan} of {outline.geometry.shape} voxels takes at least {needed // MEGABYTE} MB, "
                f"the limit is {self.limit // MEGABYTE} MB.",
                "Raise --max-memory.",
            )

    def plan(self, placement: Placement, *, probabilities: bool = False, beside: Beside = ALONE) -> Plan:
        """How a scan would be computed, and the memory that this would take.

        Raises:
            BudgetExceeded: ``E_MEMORY``.
        """
        return plan(
            placement.grid,
            placement.scan.shape,
            self.spec,
            self.answering,
            beside=beside,
            maps=probabilities,
            batch=self.batch,
            limit=self.limit,
            gpu=self.gpu_memory,
            back=None if self.resident is None else comes_back(self.spec, probabilities),
        )

    def segment(self, volume: Volume, *, probabilities: bool = False) -> Segmentation:
        """Label every voxel of a scan, on the scan's own grid; keep region maps if asked to.

        Raises:
            ScanRefused: see ``preprocess.prepare``.
            BudgetExceeded: ``E_MEMORY``, before anything is computed.
            EngineUnavailable: ``E_ENGINE_FAILED``.
        """
        return self.label(self.compute(self.ready(volume, probabilities=probabilities)))

    def ready(self, volume: Volume, *, probabilities: bool = False, beside: Beside = ALONE) -> Ready:
        """The first step of ``segment``: it needs no engine, so it may run beside another scan's second."""
        started = time.perf_counter()
        placed = place(volume, self.spec)
        planned = self.plan(placed.placement, probabilities=probabilities, beside=beside)
        prepared = (prepare if planned.back is None else examine)(volume, self.spec, placed)
        return Ready(volume, prepared, planned, probabilities, _since(started, "prepare"))

    def compute(self, ready: Ready) -> Computed:
        """The second step: the network, one scan at a time.

        Raises:
            BudgetExceeded: ``E_TIMEOUT``, ``E_MEMORY``.
            EngineUnavailable: ``E_ENGINE_FAILED``.
        """
        started = time.perf_counter()
        way, answer = self._answer(ready, self._deadline(started, ready.volume, ready.seconds))
        return Computed(way, answer, {**ready.seconds, **_since(started, "infer")})

    def _answer(self, ready: Ready, deadline: Deadline | None) -> tuple[Ready, NDArray[np.float32] | Decided]:
        """The answer, and the way that gave it: where a GPU falls short, one that takes less."""
        short: BudgetExceeded | None = None
        for way in self._ways(ready):
            try:
                return way, self._answered(way, deadline)
            except BudgetExceeded as error:
                if self.resident is not None:
                    self.resident.card.give_back()
                if error.code != "E_MEMORY":
                    raise
                short = error
        assert short is not None, "there is a way at least"
        raise short

    def _ways(self, ready: Ready) -> Iterator[Ready]:
        """How a scan may be computed: as planned, then with less and less of a GPU's memory."""
        if isinstance(ready.prepared, Examined):
            # Once more as it is, since the card, emptied by now, may have held what scans before it took.
            yield ready
            yield from _halved(ready)
            planned = tiles_alone(ready.plan, self.spec)
            ready = replace(ready, prepared=prepare(ready.volume, self.spec), plan=planned)
        if self.resident is not None:  # whose memory the engine now needs for itself
            self.resident.card.give_back()
        yield from _halved(ready)

    def _answered(self, ready: Ready, deadline: Deadline | None) -> NDArray[np.float32] | Decided:
        planned = ready.plan
        if isinstance(ready.prepared, Prepared):
            engine = self.engine if deadline is None else _timed(self.engine, deadline)
            return predict(ready.prepared.data, engine, self.spec, planned.batch, planned.tiling)
        assert self.resident is not None, "or the scan would have been prepared"
        return self.resident.compute(ready.volume.data, ready.prepared, self.spec, planned, deadline)

    def label(self, computed: Computed) -> Segmentation:
        """The last step: labels on the scan's own grid, beside another scan's second step if need be.

        Raises:
            BudgetExceeded: ``E_TIMEOUT``, at its start or its end.
        """
        started = time.perf_counter()
        ready, answer = computed.ready, computed.answer
        volume, placement = ready.volume, ready.prepared.placement
        deadline = self._deadline(started, volume, computed.seconds)
        if deadline is not None:
            deadline.require()
        survey = Survey(self.spec, keep_maps=ready.probabilities)
        if isinstance(answer, Decided):
            survey.count(answer.counts)
            labels = answer.labels
        else:
            labels = restore(answer[..., : self.spec.label_channels], placement, survey)
        labels = drop_specks(labels, self.spec, volume.geometry.voxel_volume)
        segmentation = Segmentation(
            labels=labels,
            geometry=volume.geometry,
            names=self.spec.label_names,
            regions=self.spec.region_labels,
            scan=volume.scan,
            probabilities=survey.maps(placement),
            record={
                **self.record(),
                "engine_choice": self.why,
                "plan": ready.plan.record(),
                "inputs": [vars(source) for source in volume.sources],
                "reference": self.spec.reference,
                **volume.record,
            },
        )
        ranges = survey.ranges(volume.geometry.voxel_volume)
        flags = quality_flags(segmentation, ranges, placement, self.spec, volume.absent)
        if self.spec.anatomy == "brain":
            flags += fingerprint(volume, [modality.name for modality in self.spec.modalities])
        told = {
            "volume_ranges_ml": {k: vars(v) for k, v in ranges.items()},
            "flags": [vars(f) for f in flags],
            **self._type(answer, labels),
            "seconds": {**computed.seconds, **_since(started, "restore")},
        }
        if deadline is not None:
            deadline.require()
        return replace(segmentation, record={**segmentation.record, **told})

    def record(self) -> dict[str, Any]:
        """What every result of this segmenter has in common: the model, the engine, the options."""
        return {
            "model": self.model,
            "engine": vars(self.engine.identity),
            "options": {
                "batch": self.batch,
                "scheme": self.spec.scheme,
                **self._tiles(),
                **self.options,
            },
        }

    def _deadline(self, started: float, volume: Volume, seconds: Mapping[str, float]) -> Deadline | None:
        """Until when a stage that started now may last, by what the stages before it took."""
        if self.timeout is None:
            return None
        return Deadline(started + self.timeout - sum(seconds.values()), f"scan {volume.scan}", self.timeout)

    def _type(self, answer: NDArray[np.float32] | Decided, labels: NDArray[np.uint8]) -> dict[str, Any]:
        """The type of the tumour, for models that tell it; none where no voxel of the scan is labelled."""
        if not self.spec.types or isinstance(answer, Decided):  # for such models no GPU decides
            return {}
        said = tumour_type(answer, self.spec) if labels.any() else None
        return {"type": said and vars(said)}

    def _tiles(self) -> dict[str, Any]:
        if self.spec.scheme == "whole":
            return {}
        return {"tile": list(self.spec.tile), "overlap": self.spec.overlap}

    def close(self) -> None:
        """Close the engine, and give back what scans took on its GPU."""
        if self.resident is not None:
            self.resident.card.close()
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def load(
    model: Path | str | Sequence[Path | str] = (),
    engine: EngineName = "auto",
    *,
    precision: Precision | None = None,
    device: str | None = None,
    threads: int | None = None,
    batch: int = 1,
    tile: int | None = None,
    overlap: float | None = None,
    tta: bool = False,
    max_memory: int | None = None,
    require_signature: Path | None = None,
    timeout: float | None = None,
) -> Segmenter:
    """Open a bundle, check every byte of it, open an engine, and prove the engine on the golden tile.

    Without one it is the default model. Several bundles of one task answer as one: their logits are
    averaged. With ``tta`` those of all mirror images of a tile are.
    ``precision`` is FP16 on TensorRT and FP32 on the others, unless another is named.
    ``device`` is the CPU, or ``"cuda:0"`` for an engine that runs on GPUs only, unless another is named.
    ``tile`` (voxels a side) or ``overlap`` (a fraction) put blended tiles in place of the spec's scheme;
    ``max_memory`` in bytes. ``require_signature``: public keys (PEM) of which one has to have signed each.
    ``timeout`` in seconds, for each scan.

    Raises:
        UsageRefused: ``E_USAGE`` for a tile or an overlap that the model cannot have, or bundles that make
            no ensemble.
        BundleInvalid: the bundle is damaged, unsigned, uncertified for the engine, or fails its self-test.
        EngineUnavailable: the engine or device is not to be had here, or the default model.
    """
    named = [model] if isinstance(model, str | Path) else model
    bundles = [Bundle.open(path, require_signature) for path in named or [default_model()]]
    joint = joint_spec([bundle.spec for bundle in bundles])
    spec = _retiled(joint, tile, overlap)
    device = device or default_device(engine)
    choice = choose(bundles[0], engine, precision, device)
    told: dict[str, Any] = {"tta": True} if tta else {}
    if len(bundles) > 1:
        told["ensemble"] = [identity_of([bundle], spec) for bundle in bundles]
    opened: list[Engine] = []
    resident: Resident | None = None
    why_not = ""
    try:
        for bundle in bundles:
            opened.append(
                open_engine(bundle, choice.engine, precision=choice.precision, device=device, threads=threads)
            )
            selftest.check(opened[-1], bundle.golden())
        if device != "cpu" and not told:
            resident, why_not = proven(opened[0], bundles[0].golden(), find(device))
        free = None if device == "cpu" else free_memory(find(device)) // len(opened)
    except BaseException:
        if resident is not None:
            resident.card.close()
        for one in opened:
            one.close()
        raise
    # No certificate can name every GPU, so results say what it rests on that this one computes right.
    why = choice.why if device == "cpu" else f"{choice.why}; shown to be right here by the self-test"
    why += f"; its scans do not stay on the GPU: {why_not}" if why_not else ""
    return Segmenter(
        spec,
        MeanEngine(opened, mirrors_of(spec) if tta else ((),)) if told else opened[0],
        batch=batch,
        model=identity_of(bundles, joint),
        why=why,
        max_memory=max_memory,
        gpu_memory=free,
        options=told,
        timeout=timeout,
        resident=resident,
        weights=sum(len(bundle.graph(choice.precision)) for bundle in bundles),
    )


def _halved(ready: Ready) -> Iterator[Ready]:
    """A scan with its batch, with half of it, and so on to one tile."""
    for batch in halves(ready.plan.batch):
        yield replace(ready, plan=replace(ready.plan, batch=batch))


def _timed(engine: Engine, deadline: Deadline) -> Engine:
    """An engine until a moment; of several, or of mirror images, the moment is looked at between them."""
    timed = partial(TimedEngine, deadline=deadline)
    return engine.each(timed) if isinstance(engine, MeanEngine) else timed(engine)


def _since(started: float, stage: str) -> dict[str, float]:
    return {stage: round(time.perf_counter() - started, 4)}


def _retiled(spec: ModelSpec, tile: int | None, overlap: float | None) -> ModelSpec:
    """The spec with tiles of another size or overlap; what the model was trained with stays as it is."""
    if tile is None and overlap is None:
        return spec
    try:
        return replace(
            spec,
            scheme="tiles",
            halo=0,
            tile=spec.tile if tile is None else (tile, tile, tile),
            overlap=spec.overlap if overlap is None else overlap,
        )
    except BundleInvalid as error:
        raise UsageRefused("E_USAGE", error.received, "Give another --tile or --overlap.") from error
