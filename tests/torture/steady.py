"""The same question has the same answer, and asking it for long costs no more each time."""

import hashlib
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from torture.rows import Row, Setup

__all__ = ["determinism", "soak"]


def determinism(setup: Setup) -> Iterator[Row]:
    """One scan, many times, each engine, one thread and two: one mask, byte for byte."""
    from brainseg_runtime import find_scans, load, read, write
    from brainseg_runtime.bundle import Bundle
    from brainseg_runtime.engines.choice import ENGINES, installed

    spec = Bundle.open(setup.bundle).spec
    volume = read(find_scans(setup.scans, spec).scans[0])
    times = setup.count(20, 2)
    files: dict[str, set[str]] = {}
    for engine in ENGINES:
        if not installed(engine) or not ENGINES[engine].runs_on("cpu"):
            continue
        for threads in (1, 2):
            with load(setup.bundle, engine, threads=threads) as segmenter:
                for _ in range(times):
                    written = write(segmenter.segment(volume), setup.place / "same")
                    digest = hashlib.sha256(written.mask.read_bytes()).hexdigest()
                    files.setdefault(engine, set()).add(digest)
        found = f"{len(files[engine])} different files"
        yield Row(
            f"one scan, {times} times with 1 and with 2 threads: {engine}",
            str(2 * times),
            found,
            len(files[engine]) == 1,
        )
    together = len(set.union(*files.values()))
    yield Row("the masks of all engines", str(len(files)), f"{together} different files", None)
    yield from _batches(setup)


def _batches(setup: Setup) -> Iterator[Row]:
    from brainseg_runtime import find_scans, load, read
    from brainseg_runtime.bundle import Bundle

    spec = Bundle.open(setup.bundle).spec
    volume = read(find_scans(setup.scans, spec).scans[0])
    logits = []
    for batch in (1, 2, 3):
        with load(setup.bundle, "ort", batch=batch, overlap=0.5) as segmenter:
            logits.append(segmenter.compute(segmenter.ready(volume)).answer)
    most = max(float(np.abs(other - logits[0]).max()) for other in logits[1:])
    yield Row("batches of 1, 2 and 3 tiles: largest difference of a logit", "3", f"{most:.1e}", None)


SOAK = """
    import json, os, sys
    from dataclasses import replace
    from pathlib import Path
    from brainseg_runtime import find_scans, load
    from brainseg_runtime.batch import Done, run
    scans, bundle, out, engine, count = *map(Path, sys.argv[1:4]), sys.argv[4], int(sys.argv[5])
    def now():
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        rss, threads = int(status["VmRSS"].split()[0]), int(status["Threads"])
        return rss, threads, len(os.listdir("/proc/self/fd"))
    seen = []
    with load(bundle, engine) as segmenter:
        found = find_scans(scans, segmenter.spec)
        named = [replace(found.scans[n % len(found.scans)], id=f"{n:04}") for n in range(count)]
        for outcome in run(segmenter, replace(found, scans=tuple(named)), out):
            assert isinstance(outcome, Done), outcome
            seen.append(now())
    print(json.dumps(seen))
"""


def soak(setup: Setup) -> Iterator[Row]:
    """One batch that does not end, as users run it: memory, threads and open files after each scan."""
    if not Path("/proc/self/status").exists():
        return
    count = setup.count(900, 12)
    from brainseg_runtime.engines.choice import ENGINES, installed

    for engine in ENGINES:
        if not installed(engine) or not ENGINES[engine].runs_on("cpu"):
            continue
        command = [sys.executable, "-c", textwrap.dedent(SOAK)]
        command += [str(setup.scans), str(setup.bundle), str(setup.place / "soak"), engine, str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ})
        seen = np.array(json.loads(done.stdout))
        warm = seen[len(seen) // 3 :]  # each thread has pools in the allocator, which fill up first
        # What is held while an outcome is told depends on how far the next scans are, which are read and
        # written beside it by threads of their own: the most memory of ten scans does not, nor do the fewest
        # threads and files of a hundred.
        step = min(10, len(warm) // 2)
        most = warm[: len(warm) // step * step, 0].reshape(-1, step).max(axis=1)
        first = (most[0] - seen[0, 0]) / 1000
        slope = float(np.polyfit(np.arange(len(most)), most, 1)[0]) / step * 100 / 1000  # MB per 100 scans
        half = len(warm) // 2
        grown = int((warm[half:, 1:].min(axis=0) - warm[:half, 1:].min(axis=0)).max())
        found = (
            f"{first:+.1f} MB of resident memory over the first third, then {slope:+.2f} per 100 scans, "
            f"threads {warm[:, 1].min()} to {warm[:, 1].max()}, "
            f"open files {warm[:, 2].min()} to {warm[:, 2].max()}"
        )
        # A dozen scans are too few for a slope: no verdict, unless threads or files grow with every scan.
        held = (grown <= 0 and slope < 1) if count >= 100 or grown >= half else None
        yield Row(f"scans in one batch of one process: {engine}", str(count), found, held)
