"""Memory is planned before the start, and the plan is kept; what cannot fit is refused before it is read."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np

from torture.rows import Row, Setup

__all__ = ["budgets"]

EDGES = {160: 0.0, 240: 0.1, 320: 0.5, 512: 1.0}
"""Voxels a side of the scans, and the share of the full numbers from which they are tried."""
GOAL_MB = 2000
"""For four modalities of 512 x 512 x 512."""
FOLDER = 160, 0.1
"""The same for a folder of three scans, whose files hold 8 bytes a voxel."""
REFUSED_MB = 64
"""How much more than a run that only opens the model a refused one may take."""


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
        apart = _apart(setup.place / f"free{edge}", setup.place / f"tight{edge}")
        told = (
            f"planned {least} MB in {cut['plan']['passes']} passes, held {tight:.0f}; unbounded "
            f"{whole['plan']['passes']} and {free:.0f}; masks differ in {apart} of {edge**3:,} voxels"
        )
        held = tight <= least and apart == 0
        yield Row(f"four modalities of {edge}^3 voxels, the least memory", "2", told, held)
        if edge == max(EDGES):
            yield Row(
                f"four modalities of {edge}^3 voxels within {GOAL_MB} MB",
                "1",
                "as above" if least <= GOAL_MB else f"refused: {least} MB are the least",
                least <= GOAL_MB,
            )

    edge, share = FOLDER
    if setup.share >= share:
        yield from _folder(setup, edge)
        yield _refused(setup, edge)


def _apart(*folders: Path) -> int:
    """Voxels in which the masks of two runs differ."""
    one, other = (next(folder.glob("*_seg.nii.gz")) for folder in folders)
    return int(np.count_nonzero(nibabel.load(one).dataobj[:] != nibabel.load(other).dataobj[:]))


def _folder(setup: Setup, edge: int) -> Iterator[Row]:
    """Three scans in one process, with the memory of one, and with that of all."""
    scans = setup.place / "folder"
    _write_scan(setup, scans / "p0", edge, np.float64)
    for name in ("p1", "p2"):
        (scans / name).mkdir()
        for path in (scans / "p0").iterdir():
            os.link(path, scans / name / path.name.replace("p0", name))
    planned = [event for event in _told(setup, scans, "--dry-run") if event["event"] == "planned"]
    alone = max(event["expected_memory_mb"] for event in planned)
    together = max(int(re.findall(r"(\d+) MB", event.get("next_scan", "0 MB"))[0]) for event in planned)
    ways = {"memory for one": alone + 1, "memory for three": together + 1}
    masks = set()
    for name, limit in ways.items():
        out = setup.place / name
        _told(setup, scans, "-o", str(out), "--max-memory", str(limit))
        records = [json.loads(path.read_text()) for path in sorted(out.glob("*_seg.json"))]
        masks |= {(n, record["mask"]["sha256"]) for n, record in enumerate(records)}
        held = max(record["peak_memory_mb"] for record in records)
        beside = sum(record.get("next_scan", "").startswith("read beside") for record in records)
        same = len(masks) == len(records) == len(planned)
        told = (
            f"limit {limit} MB, held {held:.0f}; {beside} of {len(records) - 1} read beside another; masks "
            f"{'the same' if same else 'differ'}"
        )
        what = f"a folder of three scans of {edge}^3 voxels in float64, {name}"
        right = beside == (0 if name == "memory for one" else len(records) - 1)
        yield Row(what, str(len(records)), told, held <= limit and same and right)


def _refused(setup: Setup, edge: int) -> Row:
    """What a run takes that refuses all of its scans, beside one that finds nothing to read."""
    scans = setup.place / "folder"
    status, refused = _held(setup, scans, "--max-memory", str(300 + edge**3 * 16 // 1_000_000))
    empty = setup.place / "empty"
    empty.mkdir()
    _, opened = _held(setup, empty)
    told = f"status {status}, held {refused:.0f} MB; a run without scans holds {opened:.0f}"
    what = f"a folder of three scans of {edge}^3 voxels, refused"
    return Row(what, "3", told, status == 8 and refused <= opened + REFUSED_MB)


def _held(setup: Setup, scan: Path, *options: str) -> tuple[int, float]:
    """Status of ``brainseg-infer``, and the most memory that it held, in MB, as the kernel tells of a child.

    Of a child that a small process started: else it is also what that held when it began.
    """
    out = ["-o", str(setup.place / "none"), *options]
    code = (
        "import os, resource, subprocess, sys; "
        "status = subprocess.run(sys.argv[1:], capture_output=True).returncode; "
        "print(status, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    command = [sys.executable, "-S", "-c", code, *_command(setup, scan), *out]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return int(told[0]), int(told[1]) / 1e3


def _told(setup: Setup, scans: Path, *options: str) -> list[dict]:
    """What ``brainseg-infer`` says, an event a line."""
    done = subprocess.run(
        [*_command(setup, scans), "--json", *options], check=True, capture_output=True, text=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def _write_scan(setup: Setup, folder: Path, edge: int, dtype: type = np.float32) -> None:
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
        path = folder / f"{folder.name}-{source.modality}.nii.gz"
        write_image(path, image, geometry)
        if dtype != np.float32:
            stored = nibabel.load(path)
            nibabel.save(
                nibabel.Nifti1Image(image.astype(dtype), stored.affine, stored.header, dtype=dtype), path
            )


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
