"""Runs that are killed, crowded, or denied their output: nothing half done looks done."""

import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np

from torture.rows import Row, Setup

__all__ = ["crowded", "denied", "interrupted", "killed_anywhere", "killed_at_every_write"]

# Imports once, then forks for each run: starting Python is most of what a small run costs.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "brainseg_runtime.cli",
        "brainseg_runtime.batch",
        "brainseg_runtime.engines.ort",
        "torture.faults",
        "PIL.Image",
    ]
)


OF_THE_RUN = ("seconds", "peak_memory_mb", "next_scan")
"""What a record tells of the run that it came from: a resumed one has other scans in hand."""


def _infer(arguments: list[str], said: Path, falter_at: int | None, room: int | None) -> None:
    """``brainseg-infer`` in this process, its words in a file; it may end at a step or lack room."""
    for stream in (1, 2):
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    if room is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    if falter_at is not None:
        _falter(falter_at)
    from brainseg_runtime.cli import infer_main

    sys.argv = ["brainseg-infer", *arguments]
    infer_main()


def _falter(at: int) -> None:
    """End the process at the nth step of writing files, as a power cut would, without a word."""
    steps = 0

    def wrap(real: Callable[..., object]) -> Callable[..., object]:
        def step(*arguments: object, **more: object) -> object:
            nonlocal steps
            answer = None
            for moment in ("before", "after"):
                if steps == at:
                    os._exit(137)
                steps += 1
                if moment == "before":
                    answer = real(*arguments, **more)
            return answer

        return step

    os.fsync, os.replace = wrap(os.fsync), wrap(os.replace)  # type: ignore[assignment]


def _arguments(setup: Setup, out: Path, *options: str) -> list[str]:
    model = ["-m", str(setup.bundle), "--engine", "ort", "--threads", "1"]
    return [str(setup.scans), "-o", str(out), *model, *options]


def _start(
    setup: Setup, out: Path, *options: str, falter_at: int | None = None, room: int | None = None
) -> BaseProcess:
    arguments = _arguments(setup, out, *options)
    process = SERVER.Process(target=_infer, args=(arguments, setup.place / "said", falter_at, room))
    process.start()
    return process


def _run(setup: Setup, out: Path, *options: str, **more: int) -> tuple[int | None, str]:
    said = setup.place / "said"
    said.unlink(missing_ok=True)
    process = _start(setup, out, *options, **more)  # type: ignore[arg-type]
    process.join(300)
    return process.exitcode, said.read_text()


def results(out: Path) -> dict[str, str]:
    """Every file of a folder and what has to be the same in it: its digest, or a record without times."""
    found = {}
    for path in sorted(out.iterdir()):
        if path.name.startswith("."):
            continue
        if path.suffix == ".json":
            record = json.loads(path.read_bytes())
            record = {k: v for k, v in record.items() if k not in OF_THE_RUN}
            found[path.name] = json.dumps(record, sort_keys=True)
        else:
            found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def half_done(out: Path, whole: dict[str, str]) -> list[str]:
    """Files under a final name that are not what an undisturbed run leaves under it."""
    if not out.exists():
        return []
    # The table grows with every run; it is whole if it can be read, and complete at the end.
    return [
        name for name, value in results(out).items() if name != "volumes.csv" and whole.get(name) != value
    ]


def _undisturbed(setup: Setup, *options: str) -> dict[str, str]:
    out = setup.place / "undisturbed"
    if out.exists():
        shutil.rmtree(out)
    status, said = _run(setup, out, *options)
    assert status == 0, said
    return results(out)


def killed_anywhere(setup: Setup) -> Iterator[Row]:
    """SIGKILL at random moments; the next run goes on, until one ends; then all is as if nothing had been."""
    whole = _undisturbed(setup)
    started = time.perf_counter()
    _undisturbed(setup)
    takes = time.perf_counter() - started
    rng, kills, rounds, half, wrong, left = np.random.default_rng(9), 0, 0, 0, 0, 0
    wanted = setup.count(100, 3)
    while kills < wanted:
        out = setup.place / f"killed-{rounds}"
        rounds += 1
        while True:
            process = _start(setup, out)
            process.join(float(rng.uniform(0, takes)) if kills < wanted else 300)
            if not process.is_alive():
                break
            process.kill()
            process.join()
            kills += 1
            half += len(half_done(out, whole))
        wrong += process.exitcode != 0 or results(out) != whole
        left += sum(path.suffix == ".part" for path in out.iterdir())
    found = f"{half} half files, {wrong} of {rounds} outcomes differ, {left} hidden `.part` files left"
    yield Row(
        "kill -9 at random moments of a batch, then resumed", f"{kills} kills", found, not half and not wrong
    )


def interrupted(setup: Setup) -> Iterator[Row]:
    """Ctrl-C and SIGTERM at random moments: the stated status, no half file, the next run does the rest."""
    whole = _undisturbed(setup)
    process = _started(setup, setup.place / "timed")
    started = time.perf_counter()
    process.join(300)
    takes, rng, wanted = time.perf_counter() - started, np.random.default_rng(10), setup.count(10)
    for number in (signal.SIGINT, signal.SIGTERM):
        tried, half, left, other, wrong = 0, 0, 0, 0, 0
        while tried < wanted:
            out = setup.place / f"{number.name}-{tried}"
            shutil.rmtree(out, ignore_errors=True)
            process = _started(setup, out)
            time.sleep(float(rng.uniform(0, takes)))
            with suppress(ProcessLookupError):  # it had just ended
                os.kill(process.pid, number)  # type: ignore[arg-type]
            process.join(300)
            if process.exitcode == 0 and results(out) == whole:
                continue
            tried += 1
            half += len(half_done(out, whole))
            left += sum(path.suffix == ".part" for path in out.iterdir()) if out.exists() else 0
            other += process.exitcode != 130
            status, _ = _run(setup, out)
            wrong += status != 0 or results(out) != whole
        found = (
            f"{tried - other} ended with 130, {half} half files, {left} hidden `.part` files left, "
            f"{wrong} resumed outcomes differ"
        )
        held = not (half or left or other or wrong)
        yield Row(f"{number.name} at random moments of a batch, then resumed", str(tried), found, held)


def _started(setup: Setup, out: Path) -> BaseProcess:
    """A run that has said its first line: the model is open, the first scan about to be read."""
    said = setup.place / "said"
    said.unlink(missing_ok=True)
    process = _start(setup, out)
    while not said.exists() or not said.stat().st_size:
        assert process.is_alive()
        time.sleep(0.002)
    return process


def killed_at_every_write(setup: Setup) -> Iterator[Row]:
    """The process ends before and after every fsync and rename of a run, one run for each."""
    options = ("--probabilities", "--preview")
    whole = _undisturbed(setup, *options)
    out, half, wrong, points, at = setup.place / "faltered", 0, 0, 0, 0
    while True:
        shutil.rmtree(out, ignore_errors=True)
        status, said = _run(setup, out, *options, falter_at=at)
        if status == 0:
            break
        assert status == 137, said
        points += 1
        half += len(half_done(out, whole))
        status, _ = _run(setup, out, *options)
        wrong += status != 0 or results(out) != whole
        at += 1 if setup.share == 1 else 9  # the suite tries every ninth
    found = f"{half} half files, {wrong} resumed outcomes differ"
    yield Row(
        "ended before and after every fsync and rename", f"{points} points", found, not half and not wrong
    )


def crowded(setup: Setup) -> Iterator[Row]:
    """Two runs into one folder at once: with the same options, and with others."""
    whole = _undisturbed(setup)
    wrong, count = 0, setup.count(10)
    for n in range(count):
        out = setup.place / f"crowded-{n}"
        wrong += _both(setup, out, [()] * 2) != [0, 0] or results(out) != whole
    yield Row("two runs at once into one folder", str(count), f"{wrong} outcomes differ", not wrong)
    mixed = mended = 0
    for n in range(count):
        out = setup.place / f"mixed-{n}"
        _both(
            setup, out, [("--overwrite", "--label-scheme", scheme) for scheme in ("brats2023", "brats2021")]
        )
        mixed += sum(_disagree(out, path) for path in out.glob("*_seg.json"))
        status, _ = _run(setup, out)
        mended += status == 0 and results(out) == whole
    found = f"{mixed} records of another run's mask, each told by its hash; {mended} mended by the next run"
    yield Row("two runs with different options into one folder", str(count), found, mended == count)


def _both(setup: Setup, out: Path, options: Sequence[tuple[str, ...]]) -> list[int | None]:
    running = [_start(setup, out, *more) for more in options]
    for process in running:
        process.join(300)
    return [process.exitcode for process in running]


def _disagree(out: Path, record: Path) -> bool:
    mask = json.loads(record.read_bytes())["mask"]
    return hashlib.sha256((out / mask["file"]).read_bytes()).hexdigest() != mask["sha256"]


def denied(setup: Setup) -> Iterator[Row]:
    """No room, no right to write, no right to read: the stated status, and nothing damaged."""
    whole = _undisturbed(setup)
    out = setup.place / "full"
    status, said = _run(setup, out, room=200)  # bytes: less than any mask
    left = [path.name for path in out.iterdir()] if out.exists() else []
    held = (status, "E_OUTPUT" in said, left) == (7, True, [])
    status_after, _ = _run(setup, out)
    held = held and status_after == 0 and results(out) == whole
    yield Row("no room for a file", "1", f"status {status}, {len(left)} files left, then resumed", held)
    if os.geteuid() == 0 and (row := _small_disk(setup, whole)):
        yield row
    yield from _rights(setup)


def _small_disk(setup: Setup, whole: dict[str, str]) -> Row | None:
    place = setup.place / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", place], check=False).returncode:
        return None
    try:
        status, said = _run(setup, place / "out")
        held = status == 7 and "E_OUTPUT" in said and not half_done(place / "out", whole)
        subprocess.run(["mount", "-o", "remount,size=64m", place], check=True)
        after, _ = _run(setup, place / "out")
        held = held and after == 0 and results(place / "out") == whole
    finally:
        subprocess.run(["umount", place], check=True)
    return Row(
        "a disk that fills up, then has room",
        "1",
        f"status {status}, then {after} and all as it should be",
        held,
    )


def _rights(setup: Setup) -> Iterator[Row]:
    """Without the right of an administrator to pass over rights, where there is a way to give it up."""
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        return
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    code = "from brainseg_runtime.cli import infer_main; infer_main()"

    def bare(arguments: list[str]) -> tuple[int, str]:
        command = [*drop, sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    out = setup.place / "locked"
    out.mkdir(mode=0o555)
    status, said = bare(_arguments(setup, out))
    held = (status, "E_OUTPUT" in said) == (7, True)
    yield Row("an output folder that may not be written", "1", f"status {status}", held)
    scans = shutil.copytree(setup.scans, setup.place / "unreadable")
    sorted(scans.rglob("*t1c.nii.gz"))[0].chmod(0)
    out = setup.place / "rest"
    status, said = bare(_arguments(replace(setup, scans=scans), out))
    done = len(list(out.glob("*_seg.json")))
    held = (status, "E_INPUT_MISSING" in said, done) == (4, True, len(_scan_folders(scans)) - 1)
    yield Row("an input file that may not be read", "1", f"status {status}, {done} other scans done", held)


def _scan_folders(scans: Path) -> Sequence[Path]:
    return [path for path in scans.iterdir() if path.is_dir()]
