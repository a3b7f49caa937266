"""How much memory a scan takes, and how its computation is cut to fit, before any of it starts."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Literal

from brainseg_runtime.certainty import levels
from brainseg_runtime.errors import BudgetExceeded
from brainseg_runtime.geometry import Shape
from brainseg_runtime.preprocess import SLAB, largest_grid
from brainseg_runtime.spec import ModelSpec
from brainseg_runtime.tiles import Tiling
from brainseg_runtime.volume import Outline

__all__ = [
    "ALONE",
    "MEGABYTE",
    "Back",
    "Beside",
    "InHand",
    "Model",
    "Plan",
    "Stages",
    "halves",
    "least",
    "machine_memory",
    "most_fetched",
    "plan",
    "tiles_alone",
    "told_of_next",
]

MEGABYTE = 1_000_000

Back = Literal["labels", "logits"]
"""What leaves a GPU that a scan stays on."""

PROCESS = 300 * MEGABYTE
"""Interpreter and libraries, an engine's among them. Measured on a CPU: 130 MB with onnxruntime, 190 with
openvino."""
WEIGHTS = 3
"""How often an engine holds its weights: as read, and packed, from FP16 into twice as many bytes."""

PLACED, PREPARED, LABELLED = 4, 18, 16
"""Bytes a voxel that lie beside a scan while its brain is found, a channel is prepared, and labels are made
and written. Measured, the last for a tumour; labels like noise take six times as much."""
DRAWN = 32
"""What pictures and DICOM objects take beside that, all at once. Measured for pictures."""

GPU_SHARE, GPU_OVERHEAD = 0.9, 2.0
"""What of a GPU's free memory is planned with; and what an engine holds there, relative to the activations of
FP32 that are alive at once. Not measured: an engine on a GPU asks again, exactly, before it runs."""

OVERHEAD = {"openvino": 1.1, "ort": 1.5}
"""What an engine holds, relative to the activations that are alive at once. Measured."""


@dataclass(frozen=True)
class Model:
    """What answers, as far as its memory goes."""

    engine: str
    members: int = 1
    """How many engines answer, each with weights and an arena of its own."""
    averaged: bool = False
    """Whether answers are averaged, of members or of mirror images."""
    weights: int = 0
    """Bytes of all graphs."""

    @property
    def process(self) -> int:
        """What is held before there is a scan."""
        return PROCESS + WEIGHTS * self.weights


@dataclass(frozen=True)
class Beside:
    """What is in memory beside a scan and its answer."""

    stored: int = 0
    """Bytes while it is read: its files, and copies on their way."""
    pictures: bool = False
    """Whether any are drawn to go with the mask."""
    kept: int = 0
    """Bytes of an arena that the engine has from earlier scans."""


ALONE = Beside()
"""Nothing at all."""


@dataclass(frozen=True)
class Stages:
    """What one scan takes at most in each of its stages, in bytes."""

    fetched: int
    """While it is read and prepared."""
    computed: int
    """While the engine answers, but for what the engine itself takes."""
    arena: int
    """What the engine takes while it computes, and keeps."""
    written: int
    """While it is labelled and written."""

    @property
    def most(self) -> int:
        """Of a scan by itself; the arena counts throughout, since it is there from the second scan on."""
        return self.arena + max(self.fetched, self.computed, self.written)


@dataclass(frozen=True)
class Plan:
    """How a scan will be computed, and the memory that this takes at most."""

    tiling: Tiling
    batch: int
    bytes: int
    """Of the process, while no other scan is in hand."""
    stages: Stages = Stages(0, 0, 0, 0)
    gpu_bytes: int = 0
    """On a GPU, of those that are not the machine's; 0 where none computes."""
    back: Back | None = None
    """What comes back of a scan that stays on the GPU; none where its tiles go there one by one."""

    def record(self) -> dict[str, Any]:
        """The plan as a scan's JSON tells it."""
        return {
            "passes": len(self.tiling),
            "tile": list(self.tiling.tile),
            "grid": list(self.tiling.shape),
            "expected_memory_mb": round(self.bytes / MEGABYTE),
            **(
                {
                    "batch": self.batch,
                    "expected_gpu_memory_mb": round(self.gpu_bytes / MEGABYTE),
                    "on_gpu": f"scan, {self.back} come back" if self.back else "tiles",
                }
                if self.gpu_bytes
                else {}
            ),
        }


def plan(
    grid: Shape,
    scan: Shape,
    spec: ModelSpec,
    model: Model,
    *,
    beside: Beside = ALONE,
    maps: bool = False,
    batch: int = 1,
    limit: int | None = None,
    gpu: int | None = None,
    back: Back | None = None,
) -> Plan:
    """The plan with the fewest passes that keeps to a limit in bytes; by default the machine's memory.

    ``grid`` is the network's grid, ``scan`` the scan's own. The scheme is the spec's whatever the limit:
    only a head that is computed whole may be cut, into slabs that give the same logits. ``gpu`` is the free
    memory in bytes of the GPU that computes, if one does; where it is short, fewer tiles go at a time.
    ``back`` is what would come back of a scan that may stay there: it does if the GPU also holds it, and
    nothing else of the plan depends on that. ``maps``: whether the regions' probabilities are kept.

    Raises:
        BudgetExceeded: ``E_MEMORY`` where nothing fits.
    """
    limit = machine_memory() if limit is None else limit
    attachments = DRAWN * beside.pictures + 4 * len(spec.regions) * maps
    smallest: Plan | None = None
    for tiling in _tilings(grid, spec):
        for size in halves(batch) if gpu is not None else [batch]:
            stages = _stages(tiling, scan, spec, model, size, gpu is not None)
            stages = replace(
                stages,
                fetched=stages.fetched + max(beside.stored, _preparing(prod(scan), tiling.shape, spec)),
                written=stages.written + attachments * prod(scan),
            )
            found = Plan(
                tiling,
                size,
                model.process + stages.most,
                stages,
                _on_gpu(tiling, spec, size) if gpu is not None else 0,
            )
            over = max(0, beside.kept - stages.arena)
            if found.bytes + over <= limit and (gpu is None or found.gpu_bytes <= GPU_SHARE * gpu):
                if gpu is None or back is None:
                    return found
                stays = found.gpu_bytes + _staying(tiling, scan, spec)
                return found if stays > GPU_SHARE * gpu else replace(found, gpu_bytes=stays, back=back)
            smallest = min(smallest or found, found, key=lambda p: (p.gpu_bytes, p.bytes))
    assert smallest is not None
    on_gpu = ""
    if gpu is not None:
        on_gpu = f" and {smallest.gpu_bytes // MEGABYTE} MB on the GPU, where {gpu // MEGABYTE} MB are free"
    raise BudgetExceeded(
        "E_MEMORY",
        f"a grid of {grid} voxels takes {smallest.bytes // MEGABYTE} MB in {len(smallest.tiling)} passes of "
        f"{smallest.tiling.tile}, the limit is {limit // MEGABYTE} MB{on_gpu}.",
        "Raise --max-memory, or give a smaller --batch, or a --tile, which changes results.",
    )


def tiles_alone(plan: Plan, spec: ModelSpec) -> Plan:
    """The same plan where a scan does not stay on the GPU after all: its tiles go there one by one."""
    return replace(plan, back=None, gpu_bytes=_on_gpu(plan.tiling, spec, plan.batch))


def least(outline: Outline, spec: ModelSpec) -> int:
    """What any scan of such an outline takes at least, in bytes: it is read, and its brain is found."""
    voxels = prod(outline.geometry.shape)
    return voxels * 4 * len(spec.modalities) + max(outline.beside, PLACED * voxels)


def most_fetched(outline: Outline, spec: ModelSpec) -> int:
    """What a scan of such an outline takes at most while it is read and prepared, wherever its brain lies."""
    voxels = prod(outline.geometry.shape)
    preparing = _preparing(voxels, largest_grid(outline.geometry, spec), spec)
    return voxels * 4 * len(spec.modalities) + max(outline.beside, preparing)


def told_of_next(needed: int, limit: int) -> dict[str, str]:
    """What a record says of the scan that follows; ``needed`` bytes are held in all if it is read ahead."""
    if needed <= limit:
        return {"next_scan": f"read beside, {needed // MEGABYTE} MB in all"}
    words = f"read after: beside, all would take {needed // MEGABYTE} MB, the limit is {limit // MEGABYTE} MB"
    return {"next_scan": words}


class InHand:
    """The scans of a run that are in memory at once: one read ahead, one computed, one written."""

    def __init__(self, model: Model) -> None:
        """Nothing, so far, but the model."""
        self._process = model.process
        self._current: Stages | None = None
        self._last: Stages | None = None
        self.arena = 0
        """The largest that the engine took so far."""

    def begin(self, stages: Stages | None) -> None:
        """The next scan; None for one that is not computed, and takes nothing."""
        self._last, self._current = self._current, stages
        self.arena = max(self.arena, stages.arena if stages else 0)

    def written(self) -> None:
        """The scan that was begun is written: nothing is in hand."""
        self._current = None

    def together(self, ahead: int) -> int:
        """Bytes of the process while one is computed, the last written, the next read: it takes ``ahead``."""
        computed, written = (self._current.computed, self._current.written) if self._current else (0, 0)
        last = self._last.written if self._last else 0
        return self._process + self.arena + ahead + max(computed + last, written)


def halves(batch: int) -> Iterator[int]:
    """A number of tiles, half of it, and so on to 1."""
    while batch >= 1:
        yield batch
        batch //= 2


def machine_memory() -> int:
    """Bytes of memory that this machine has, or that its container may use."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no cgroup, or one whose limit is the word "max"
        return total


def _tilings(grid: Shape, spec: ModelSpec) -> list[Tiling]:
    tilings = [Tiling.of(grid, spec)]
    if spec.scheme == "whole" and spec.halo:
        longest = max(-(-n // d) for n, d in zip(grid, spec.divisor, strict=True))
        tilings += [Tiling.slabs(grid, spec, count) for count in range(2, longest + 1)]
    return tilings


def _stages(tiling: Tiling, scan: Shape, spec: ModelSpec, model: Model, batch: int, on_gpu: bool) -> Stages:
    """A scan's stages but for what reading and attachments take."""
    voxels, grid = prod(scan), prod(tiling.shape)
    inputs, outputs = 4 * len(spec.modalities), 4 * spec.output_channels
    tiles = min(batch, len(tiling)) * tiling.voxels
    activations = 0.0 if on_gpu else OVERHEAD.get(model.engine, 1.5) * spec.working_bytes
    logits = grid * outputs
    # Tiles with a margin are copies; answers are weighted and added up beside the whole, or averaged.
    passing = tiles * (inputs + outputs * (1 if len(tiling) == 1 else 3))
    averaging = tiles * (inputs + 2 * outputs) if model.averaged else 0
    plane = max(voxels // min(scan), grid // min(tiling.shape))
    slab = 5 * outputs * min(SLAB * plane, max(voxels, grid))
    return Stages(
        fetched=voxels * inputs,
        computed=voxels * inputs + grid * inputs + logits + passing + averaging,
        arena=int(tiles * activations * model.members),
        written=voxels * (inputs + LABELLED) + grid * inputs + logits + slab,
    )


def _preparing(voxels: int, grid: Shape, spec: ModelSpec) -> int:
    """What lies beside a scan while it is prepared, the outcome included."""
    return PREPARED * max(voxels, prod(grid)) + 4 * len(spec.modalities) * prod(grid)


def _on_gpu(tiling: Tiling, spec: ModelSpec, batch: int) -> int:
    """What a pass takes on a GPU."""
    tiles = min(batch, len(tiling)) * tiling.voxels
    values = 4 * (len(spec.modalities) + spec.output_channels)
    return int(tiles * (values + GPU_OVERHEAD * spec.working_bytes))


def _staying(tiling: Tiling, scan: Shape, spec: ModelSpec) -> int:
    """What a GPU holds of a scan that stays there, beside the tiles of a pass."""
    voxels, grid = prod(scan), prod(tiling.shape)
    raw, brain_and_labels, logits = 4 * len(spec.modalities), 2, 4 * spec.output_channels
    lines = 4 * levels(spec).size * voxels // min(scan)
    return voxels * (raw + brain_and_labels) + grid * logits + lines
