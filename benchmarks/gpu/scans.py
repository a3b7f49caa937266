"""Whole scans on a GPU: where the time of one goes, whether its mask is the CPU's, and a folder of them."""

import ctypes
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TypeVar

import nibabel
import numpy as np
from brainseg_runtime import Segmentation, Segmenter, load
from brainseg_runtime.batch import Done
from brainseg_runtime.devices import Workers
from brainseg_runtime.engines.base import DeviceEngine
from brainseg_runtime.kernels.card import Card
from brainseg_runtime.overlap import dice
from brainseg_runtime.resident import Resident
from brainseg_runtime.scans import Scan, find_scans, read
from numpy.typing import NDArray

__all__ = ["PRECISIONS", "folders", "one_by_one", "region_dice"]

T = TypeVar("T")
PRECISIONS = ("fp32", "fp16")


def one_by_one(bundle: Path, scans: Sequence[Scan], masks: Path | None, rounds: int = 5) -> dict[str, object]:
    """Each scan in each precision: seconds, steps on the GPU, and Dice with the CPU's mask in FP32.

    The masks are kept in a folder, if one is named, as ``.npz``.
    """
    if masks is not None:
        masks.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, object]] = {scan.id: {} for scan in scans}
    with load(bundle, "ort", device="cpu") as segmenter:
        expected = {scan.id: segmenter.segment(read(scan)) for scan in scans}
    for precision in PRECISIONS:
        with (
            load(bundle, "ort", precision=precision, device="cuda:0") as segmenter,
            _watched(segmenter) as steps,
        ):
            for scan in scans:
                volume = read(scan)
                segmenter.segment(volume)  # memory is taken and algorithms are chosen
                steps.clear()
                every = [segmenter.segment(volume) for _ in range(rounds)]
                if masks is not None:
                    np.savez_compressed(masks / f"{scan.id}-{precision}.npz", labels=every[0].labels)
                found[scan.id][precision] = {
                    "shape": list(volume.geometry.shape),
                    "on_gpu": every[0].record["plan"].get("on_gpu"),
                    "choice": every[0].record["engine_choice"],
                    "same": all(np.array_equal(one.labels, every[0].labels) for one in every),
                    "dice": region_dice(every[0].labels, expected[scan.id]),
                    "voxels_apart": int((every[0].labels != expected[scan.id].labels).sum()),
                    "seconds": _stages([one.record["seconds"] for one in every]),
                    "steps": {name: round(total / rounds, 5) for name, total in steps.items()},
                }
    return found


def folders(bundle: Path, scan: Scan, room: Path, each: int = 16) -> list[dict[str, object]]:
    """Copies of a scan, file to file, by more and more processes on one GPU: so many for each of them."""
    most = PROCESSES[-1] * each
    for n in range(most):
        for file in scan.files:
            copy = room / "scans" / f"scan{n:03}" / file.path.name.replace(scan.id, f"scan{n:03}")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file.path, copy)
    return [_folder(bundle, room, processes, each * processes) for processes in PROCESSES]


PROCESSES = (1, 2, 4, 8, 12)


def _folder(bundle: Path, room: Path, processes: int, count: int) -> dict[str, object]:
    opening = partial(load, [bundle], "ort", precision="fp16", threads=1)
    out = room / f"out{processes}"
    with Workers(opening, ["cuda:0"] * processes) as workers:
        found = find_scans(room / "scans", workers.spec)
        started = time.perf_counter()
        outcomes = list(workers.run(replace(found, scans=found.scans[:count]), out))
        seconds = time.perf_counter() - started
    failed = [outcome for outcome in outcomes if not isinstance(outcome, Done)]
    assert not failed, failed
    records = [outcome.written.contents for outcome in outcomes]
    return {
        "processes": processes,
        "scans": count,
        "a_second": round(count / seconds, 2),
        "masks": len({np.asarray(nibabel.load(path).dataobj).tobytes() for path in out.glob("*_seg.nii.gz")}),
        "peak_memory_mb": max(record["peak_memory_mb"] for record in records),
        "stages": _stages([record["seconds"] for record in records]),
    }


def _stages(every: Sequence[dict[str, float]]) -> dict[str, float]:
    return {stage: round(median(one[stage] for one in every), 4) for stage in every[0]}


def region_dice(found: NDArray[np.uint8], expected: Segmentation) -> dict[str, float]:
    """Region -> Dice of a mask (I, J, K) with another."""
    return {
        region: round(dice(np.isin(found, labels), np.isin(expected.labels, labels)), 6)
        for region, labels in expected.regions.items()
    }


@contextmanager
def _watched(segmenter: Segmenter) -> Iterator[dict[str, float]]:
    """Seconds of every step of scans that stay on the GPU, summed by name; each step waits for its end."""
    steps: dict[str, float] = defaultdict(float)
    resident = segmenter.resident
    if resident is not None:
        watched = Resident(_Engine(resident.engine, steps), _Card(resident.card, steps))
        segmenter.resident = watched
    try:
        yield steps
    finally:
        segmenter.resident = resident


def _timed(steps: dict[str, float], name: str, work: Callable[[], T]) -> T:
    started = time.perf_counter()
    done = work()
    steps[name] += time.perf_counter() - started
    return done


@dataclass(frozen=True, eq=False)
class _Engine:
    engine: DeviceEngine
    steps: dict[str, float]

    @property
    def identity(self):
        return self.engine.identity

    def infer(self, tiles):
        return self.engine.infer(tiles)

    def infer_at(self, tiles: int, logits: int, shape: tuple[int, ...]) -> None:
        _timed(self.steps, "network", lambda: self.engine.infer_at(tiles, logits, shape))

    def close(self) -> None:
        self.engine.close()


@dataclass(frozen=True, eq=False)
class _Card:
    card: Card
    steps: dict[str, float]

    def zeros(self, size: int) -> int:
        return _timed(self.steps, "clear", lambda: self.card.zeros(size))

    def put(self, array) -> int:
        return _timed(self.steps, "upload", lambda: self.card.put(array))

    def write(self, address: int, array) -> None:
        self.card.write(address, array)

    def get(self, address: int, shape: tuple[int, ...], dtype):
        return _timed(self.steps, "download", lambda: self.card.get(address, shape, dtype))

    def run(self, name: str, arguments: ctypes.Structure, threads: int) -> None:
        _timed(self.steps, name, lambda: self.card.run(name, arguments, threads))

    def begin(self) -> None:
        self.card.begin()

    def give_back(self) -> None:
        self.card.give_back()

    def close(self) -> None:
        self.card.close()
