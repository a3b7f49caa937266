"""Memory is planned before the start, and the plan is kept; what cannot fit is refused before it is read."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from torture.rows import Row, Setup

__all__ = ["budgets"]

EDGES = {160: 0.0, 240: 0.1, 320: 0.5, 512: 1.0}
"""Voxels a side of the scans, and the share of the full numbers from which they are tried."""
GOAL_MB = 2000
"""For four modalities of 512 x 512 x 512."""


def budgets(setup: Setup) -> Iterator[Row]:
    """Scans of more and more voxels, each with as little memory as its plan names: what was really held."""
    for edge, share in EDGES.items():
        if setup.share < share:
            continue
        scan = setup.place / f"scan{edge}"
        _write_scan(setup, scan, edge)
        free, whole = _infer(setup, scan, setup.place / f"free{edge}")
        least = _least(setup, scan, whole["plan"]["expected_memory_mb"])
        tight, cut = _infer(setup, scan, setup.place / f"tight{edge}", "--max-memory", str(least))
        same = whole["mask"]["sha256"] == cut["mask"]["sha256"]
        told = (
            f"planned {least} MB in {cut['plan']['passes']} passes, held {tight:.0f}; unbounded "
            f"{whole['plan']['passes']} and {free:.0f}; masks {'the same' if same else 'differ'}"
        )
        yield Row(f"four modalities of {edge}^3 voxels, the least memory", "2", told, tight <= least and same)
        if edge == max(EDGES):
            yield Row(
                f"four modalities of {edge}^3 voxels within {GOAL_MB} MB",
                "1",
                "as above" if least <= GOAL_MB else f"refused: {least} MB are the least",
                least <= GOAL_MB,
            )


def _write_scan(setup: Setup, folder: Path, edge: int) -> None:
    """One of the sound scans, its voxels repeated and cut: a head that fills a cube of ``edge`` voxels."""
    from brainseg_runtime import find_scans, read
    from brainseg_runtime.bundle import Bundle
    from brainseg_runtime.geometry import Geometry
    from brainseg_runtime.nifti import write_image

    volume = read(find_scans(setup.scans, Bundle.open(setup.bundle).spec).scans[0])
    at = [np.minimum(np.arange(edge) * n // edge, n - 1) for n in volume.data.shape[:3]]
    factor = [n / edge for n in volume.data.shape[:3]]
    geometry = Geometry((edge,) * 3, volume.geometry.affine @ np.diag([*factor, 1.0]))
    for c, source in enumerate(volume.sources):
        image = volume.data[..., c][np.ix_(*at)]
        write_image(folder / f"{folder.name}-{source.modality}.nii.gz", image, geometry)


def _infer(setup: Setup, scan: Path, out: Path, *options: str) -> tuple[float, dict]:
    """The most memory that ``brainseg-infer`` held, in MB, and what it tells of the scan."""
    command = [*_command(setup, scan), "-o", str(out), *options]
    subprocess.run(command, check=True, capture_output=True)
    record = json.loads((out / f"{scan.name}_seg.json").read_text())
    # Not what the kernel tells of a child that has ended: that counts what its parent held when it began.
    return record["peak_memory_mb"], record


def _least(setup: Setup, scan: Path, enough: int) -> int:
    """The smallest whole ten MB that a plan is found for."""
    low, high = 0, enough // 10 + 1
    while high - low > 1:
        middle = (low + high) // 2
        command = [*_command(setup, scan), "--dry-run", "--max-memory", str(10 * middle)]
        if subprocess.run(command, capture_output=True).returncode:
            low = middle
        else:
            high = middle
    return 10 * high


def _command(setup: Setup, scan: Path) -> list[str]:
    program = Path(sys.executable).with_name("brainseg-infer")
    return [str(program), str(scan), "-m", str(setup.bundle)]
