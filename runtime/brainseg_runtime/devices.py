"""Scans through several devices: a process each, every one of which takes the next scan when it is free."""

import os
import re
import signal
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import partial
from itertools import chain
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from brainseg_runtime.batch import (
    Done,
    Failed,
    Findings,
    Outcome,
    Readable,
    Skipped,
    concluded,
    segment_each,
    unexpected,
)
from brainseg_runtime.errors import BrainsegError, BudgetExceeded, EngineUnavailable, UsageRefused
from brainseg_runtime.memory import machine_memory
from brainseg_runtime.outputs import AttachmentKind, LabelScheme
from brainseg_runtime.segmenter import Segmenter
from brainseg_runtime.spec import ModelSpec

__all__ = ["Workers", "devices_of", "share"]

GRACE = 10.0
"""Seconds in which a process that is told to end may finish what it writes."""

REST = 1.0
"""Seconds in which a process that has nothing to do ends by itself."""

Work = Callable[..., Iterator[Outcome]]


class Ask(Enum):
    """What a worker asks for."""

    AHEAD = auto()
    """The scan to read beside the one that it computes now; none, if none waits."""
    IDLE = auto()
    """Any scan, however long it takes until there is one."""


@dataclass(frozen=True)
class Opened:
    """A worker's first word: the model as it stands on its device."""

    spec: ModelSpec
    record: Mapping[str, Any]
    why: str


@dataclass(eq=False)
class Worker:
    """A process with a device, as the one that started it sees it."""

    device: str
    process: SpawnProcess
    connection: Connection
    held: deque[int] = field(default_factory=deque)
    """Which scans it was given and has not told the outcome of, in order."""
    computed: int | None = None
    """Which of them it computes."""


def devices_of(text: str) -> tuple[str, ...]:
    """The devices that an option names: ``"cpu"``, ``"cuda:1"``, or several, ``"cuda:0,cuda:1"``.

    Any may be named again, and has as many processes then: a GPU computes a scan in a fraction of the time
    that a process takes to read, prepare and write it, and its memory is shared out as threads are.

    Raises:
        UsageRefused: ``E_USAGE``.
    """
    found = []
    for name in text.split(","):
        named = re.fullmatch(r"cpu|cuda(?::([0-9]+))?", name.strip())
        if named is None:
            raise UsageRefused(
                "E_USAGE", f"{name.strip()!r} names no device.", "Use --device cpu, cuda:0, or cuda:0,cuda:1."
            )
        found.append("cpu" if named[0] == "cpu" else f"cuda:{int(named[1] or 0)}")
    return tuple(found)


def share(
    devices: Collection[str], threads: int | None, max_memory: int | None
) -> tuple[int | None, int | None]:
    """The threads and the bytes of memory that each of several processes may take; one takes what there is.

    ``max_memory`` is that of all together, ``threads`` those of one.
    """
    if len(devices) == 1:
        return threads, max_memory
    return threads or max(1, _cores() // len(devices)), (max_memory or machine_memory()) // len(devices)


class Workers(AbstractContextManager["Workers"]):
    """One model on several devices, a process each; complete when every one has opened it."""

    def __init__(self, opening: partial[Segmenter], devices: Sequence[str]) -> None:
        """``opening`` opens the model when it is told ``device=``; it goes to every process.

        Raises:
            BrainsegError: what a device met when it opened the model, and which; ``E_ENGINE_DIED``;
                ``E_ENGINE_DEVICE`` where the devices would not compute by the same engine.
        """
        self._workers: list[Worker] = []
        try:
            self._start(opening, devices)
            opened = [_first_word(worker) for worker in self._workers]
            self._engines = [dict(one.record["engine"]) for one in opened]
            _require_alike(self._engines)
        except BaseException:
            self.close()
            raise
        self.spec = opened[0].spec
        self.why = opened[0].why
        self._record = opened[0].record

    def record(self) -> dict[str, Any]:
        """As a segmenter's, but that the device is a list of all."""
        named = ",".join(worker.device for worker in self._workers)
        return {**self._record, "engine": {**self._record["engine"], "device": named}}

    def run(
        self,
        found: Findings,
        folder: Path,
        *,
        label_scheme: LabelScheme = "brats2023",
        overwrite: bool = False,
        attachments: Collection[AttachmentKind] = (),
        warn: Callable[[str], None] = warnings.warn,
    ) -> Iterator[Outcome]:
        """As ``batch.run``, but that outcomes come as they are done; it is the last that the workers do.

        A scan on which a worker dies has failed, ``E_ENGINE_DIED``; the other workers go on.

        Raises:
            OutputUnwritable: ``E_OUTPUT``; it stops the run.
        """
        work = partial(
            segment_each,
            folder=folder,
            label_scheme=label_scheme,
            overwrite=overwrite,
            attachments=attachments,
            engines=self._engines,
        )
        return concluded(found, self._outcomes(found.scans, work), folder, attachments, warn)

    def close(self) -> None:
        """End every process; what one writes it may finish."""
        for worker in self._workers:
            worker.connection.close()
        # Who waits for a scan ends by that; a signal might meet a finaliser, where Python drops its error.
        until = time.monotonic() + REST
        for worker in self._workers:
            if not worker.held:
                worker.process.join(max(0.0, until - time.monotonic()))
        for worker in self._workers:
            worker.process.terminate()
        until = time.monotonic() + GRACE
        for worker in self._workers:
            _end(worker, until)

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, opening: partial[Segmenter], devices: Sequence[str]) -> None:
        context = get_context("spawn")  # CUDA does not survive a fork
        # Started by itself, since it would unblock the signals.
        resource_tracker.ensure_running()
        # Ctrl-C reaches every process of a terminal, but these end when this one tells them to; and none is
        # started without being known here.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            for device in devices:
                ours, theirs = context.Pipe()
                told = (opening, device, devices.count(device), theirs)
                process = context.Process(target=_serve, args=told, name=device)
                process.start()
                self._workers.append(Worker(device, process, ours))
                # The pipe has to break with the process that holds its other end.
                theirs.close()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _outcomes(self, scans: Sequence[Readable], work: Work) -> Generator[Outcome, None, None]:
        """Hand out the scans, and tell what became of them, until all have an outcome."""
        waiting = deque(range(len(scans)))
        living, idle = list(self._workers), deque(self._workers)
        returned: set[int] = set()
        died = ""
        try:
            for worker in living:
                _send(worker, work)
            while living and (waiting or any(worker.held for worker in living)):
                while waiting and idle:
                    _give(idle.popleft(), scans, waiting)
                for worker in _heard(living):
                    match _said(worker):
                        case Ask.AHEAD:
                            worker.computed = worker.held[-1]
                            _give(worker, scans, waiting)
                        case Ask.IDLE:
                            worker.computed = None
                            idle.append(worker)
                        case Done() | Skipped() | Failed() as outcome:
                            worker.held.popleft()
                            yield outcome
                        case BrainsegError() as error:
                            raise error
                        case _:
                            living.remove(worker)
                            idle = deque(one for one in idle if one is not worker)
                            died = f"the process of device {worker.device} ended by {_end(worker)}"
                            lost = _lost(worker, returned)
                            waiting.extendleft(n for n in reversed(worker.held) if n not in lost)
                            returned.update(worker.held)
                            for n in lost:
                                yield _death(scans[n], f"{died} with this scan in hand")
            for n in waiting:
                yield _death(scans[n], f"no device is left for it; {died}")
        finally:
            # The table that follows is of all results, and none may be written after it.
            self.close()


def _serve(opening: partial[Segmenter], device: str, processes: int, connection: Connection) -> None:
    """The life of a worker, one of so many on its device: open the model, take scans until told to end."""
    signal.signal(signal.SIGTERM, _leave)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    # Its other end is closed: whoever started this process is gone.
    with suppress(EOFError, ConnectionError):
        try:
            with opening(device=device) as segmenter:
                connection.send(Opened(segmenter.spec, segmenter.record(), segmenter.why))
                work: Work = connection.recv()
                # Only now: it comes when all have opened the model, and hold what that takes.
                segmenter.share_gpu(processes)
                while True:
                    first = connection.recv()
                    for outcome in work(segmenter, chain([first], iter(partial(_next, connection), None))):
                        connection.send(outcome)
                    connection.send(Ask.IDLE)
        except (EOFError, ConnectionError):
            raise
        except BrainsegError as error:
            connection.send(error)
        except MemoryError:
            connection.send(
                BudgetExceeded("E_MEMORY", "the run does not fit in memory.", "Name fewer devices.")
            )
        except Exception as error:  # noqa: BLE001
            connection.send(unexpected("the run", error))


def _next(connection: Connection) -> Readable | None:
    connection.send(Ask.AHEAD)
    scan: Readable | None = connection.recv()
    return scan


def _leave(*_: object) -> None:
    # As an interruption of a single process: what is being written is finished, the rest is left.
    sys.exit(128 + signal.SIGTERM)


def _said(worker: Worker) -> object:
    """The next that a worker says; None when it is dead."""
    try:
        return worker.connection.recv()
    except (EOFError, OSError):
        return None


def _first_word(worker: Worker) -> Opened:
    match _said(worker):
        case Opened() as opened:
            return opened
        case BrainsegError() as error:
            received = f"device {worker.device}: {error.received}"
            raise type(error)(error.code, received, error.remedy)
        case _:
            raise EngineUnavailable(
                "E_ENGINE_DIED",
                f"the process of device {worker.device} ended by {_end(worker)} while it opened the model.",
                "Run on this device alone to see what it says, or leave it out.",
            )


def _require_alike(engines: Sequence[Mapping[str, Any]]) -> None:
    """Refuse devices on which a result would depend on which of them was free."""
    told = [", ".join(str(value) for key, value in e.items() if key != "device") for e in engines]
    for engine, words in zip(engines, told, strict=True):
        if words != told[0]:
            raise EngineUnavailable(
                "E_ENGINE_DEVICE",
                f"{engine['device']} would compute by {words}, {engines[0]['device']} by {told[0]}.",
                "Name one --engine, or devices of one kind.",
            )


def _heard(workers: Sequence[Worker]) -> list[Worker]:
    """Those that have said something, or will say nothing more; it waits for the first."""
    ready = wait([worker.connection for worker in workers])
    return [worker for worker in workers if worker.connection in ready]


def _give(worker: Worker, scans: Sequence[Readable], waiting: deque[int]) -> None:
    """Send a worker the scan that is next, or word that none waits."""
    if waiting:
        worker.held.append(waiting.popleft())
        _send(worker, scans[worker.held[-1]])
    else:
        _send(worker, None)


def _send(worker: Worker, what: object) -> None:
    # One that has died is found out when it is listened to.
    with suppress(ConnectionError):
        worker.connection.send(what)


def _lost(worker: Worker, returned: Collection[int]) -> list[int]:
    """Of the scans that a dead worker had in hand those that have failed; others can have the rest.

    The one that it computed, where nearly all memory is taken; and any that another had in hand when it
    died, so that a scan which kills where it is read or written does not go round.
    """
    if not worker.held:
        return []
    blamed = worker.held[0] if worker.computed is None else worker.computed
    return [n for n in worker.held if n == blamed or n in returned]


def _death(scan: Readable, how: str) -> Failed:
    remedy = "Run it again, alone if need be: the system kills what takes more memory than there is."
    return Failed(scan.id, EngineUnavailable("E_ENGINE_DIED", f"scan {scan.id}: {how}.", remedy))


def _end(worker: Worker, until: float | None = None) -> str:
    """See a process out, at the latest at a moment of the monotonic clock; how it ended."""
    worker.process.join(GRACE if until is None else max(0.0, until - time.monotonic()))
    if worker.process.exitcode is None:
        worker.process.kill()
        worker.process.join()
    worker.connection.close()
    code = worker.process.exitcode
    assert code is not None
    return signal.Signals(-code).name if code < 0 else f"status {code}"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
