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
from brainseg_runtime.spec import ModelSpec
from brainseg_runtime.tiles import Tiling

__all__ = ["MEGABYTE", "Back", "Plan", "halves", "machine_memory", "plan"]

MEGABYTE = 1_000_000

Back = Literal["labels", "logits"]
"""What leaves a GPU that a scan stays on."""

PROCESS = 350 * MEGABYTE
"""Interpreter, libraries, weights twice: as read and as the engine packs them."""

GPU_SHARE, GPU_OVERHEAD = 0.9, 2.0
"""What of a GPU's free memory is planned with; and what an engine holds there, relative to the activations of
FP32 that are alive at once. Not measured: an engine on a GPU asks again, exactly, before it runs."""

OVERHEAD = {"openvino": 1.1, "ort": 1.5}
"""What an engine holds, relative to the activations that are alive at once. Measured."""


@dataclass(frozen=True)
class Plan:
    """How a scan will be computed, and the memory that this takes at most."""

    tiling: Tiling
    batch: int
    bytes: int
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
    engine: str,
    *,
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
    nothing else of the plan depends on that.

    Raises:
        BudgetExceeded: ``E_MEMORY`` where nothing fits.
    """
    limit = machine_memory() if limit is None else limit
    smallest: Plan | None = None
    for tiling in _tilings(grid, spec):
        for size in halves(batch) if gpu is not None else [batch]:
            found = _plan(tiling, scan, spec, engine, size, gpu is not None)
            if found.bytes <= limit and (gpu is None or found.gpu_bytes <= GPU_SHARE * gpu):
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


def _plan(tiling: Tiling, scan: Shape, spec: ModelSpec, engine: str, batch: int, on_gpu: bool) -> Plan:
    """What is alive at once: three scans (read, computed, written), two with logits, and a pass."""
    voxels = scan[0] * scan[1] * scan[2]
    grid = tiling.shape[0] * tiling.shape[1] * tiling.shape[2]
    inputs, outputs = 4 * len(spec.modalities), 4 * spec.output_channels
    computed = min(batch, len(tiling)) * tiling.voxels
    activations = 0.0 if on_gpu else OVERHEAD.get(engine, 1.5) * spec.working_bytes
    held = PROCESS + 2 * voxels * inputs + grid * (inputs + outputs)
    machine = held + computed * (inputs + outputs + activations)
    gpu = computed * (inputs + outputs + GPU_OVERHEAD * spec.working_bytes) if on_gpu else 0
    return Plan(tiling, batch, int(machine), int(gpu))


def _staying(tiling: Tiling, scan: Shape, spec: ModelSpec) -> int:
    """What a GPU holds of a scan that stays there, beside the tiles of a pass."""
    voxels, grid = prod(scan), prod(tiling.shape)
    raw, brain_and_labels, logits = 4 * len(spec.modalities), 2, 4 * spec.output_channels
    lines = 4 * levels(spec).size * voxels // min(scan)
    return voxels * (raw + brain_and_labels) + grid * logits + lines
