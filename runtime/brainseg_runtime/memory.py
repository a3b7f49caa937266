"""How much memory a scan takes, and how its computation is cut to fit, before any of it starts."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brainseg_runtime.errors import BudgetExceeded
from brainseg_runtime.geometry import Shape
from brainseg_runtime.spec import ModelSpec
from brainseg_runtime.tiles import Tiling

__all__ = ["MEGABYTE", "Plan", "machine_memory", "plan"]

MEGABYTE = 1_000_000

PROCESS = 350 * MEGABYTE
"""Interpreter, libraries, weights twice: as read and as the engine packs them."""

OVERHEAD = {"openvino": 1.1, "ort": 1.5}
"""What an engine holds, relative to the activations that are alive at once. Measured."""


@dataclass(frozen=True)
class Plan:
    """How a scan will be computed, and the memory that this takes at most."""

    tiling: Tiling
    batch: int
    bytes: int

    def record(self) -> dict[str, Any]:
        """The plan as a scan's JSON tells it."""
        return {
            "passes": len(self.tiling),
            "tile": list(self.tiling.tile),
            "grid": list(self.tiling.shape),
            "expected_memory_mb": round(self.bytes / MEGABYTE),
        }


def plan(
    grid: Shape, scan: Shape, spec: ModelSpec, engine: str, *, batch: int = 1, limit: int | None = None
) -> Plan:
    """The plan with the fewest passes that keeps to a limit in bytes; by default the machine's memory.

    ``grid`` is the network's grid, ``scan`` the scan's own. The scheme is the spec's whatever the limit:
    only a head that is computed whole may be cut, into slabs that give the same logits.

    Raises:
        BudgetExceeded: ``E_MEMORY`` where nothing fits.
    """
    limit = machine_memory() if limit is None else limit
    smallest: Plan | None = None
    for tiling in _tilings(grid, spec):
        found = Plan(tiling, batch, _bytes(tiling, scan, spec, engine, min(batch, len(tiling))))
        if found.bytes <= limit:
            return found
        smallest = min(smallest or found, found, key=lambda p: p.bytes)
    assert smallest is not None
    raise BudgetExceeded(
        "E_MEMORY",
        f"a grid of {grid} voxels takes {smallest.bytes // MEGABYTE} MB in {len(smallest.tiling)} passes of "
        f"{smallest.tiling.tile}, the limit is {limit // MEGABYTE} MB.",
        "Raise --max-memory, or give a smaller --batch, or a --tile, which changes results.",
    )


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


def _bytes(tiling: Tiling, scan: Shape, spec: ModelSpec, engine: str, batch: int) -> int:
    """What is alive at once: three scans (read, computed, written), two with logits, and a pass."""
    voxels = scan[0] * scan[1] * scan[2]
    grid = tiling.shape[0] * tiling.shape[1] * tiling.shape[2]
    inputs, outputs = 4 * len(spec.modalities), 4 * spec.output_channels
    one_pass = inputs + outputs + OVERHEAD.get(engine, 1.5) * spec.working_bytes
    return int(PROCESS + 2 * voxels * inputs + grid * (inputs + outputs) + batch * tiling.voxels * one_pass)
