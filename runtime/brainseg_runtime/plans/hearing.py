"""What TensorRT says while it works: its log, and how far it is."""

# ruff: noqa: ANN401 - what TensorRT hands over has no types

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from brainseg_runtime.plans.api import TensorRT

__all__ = ["Heard", "Progress", "logger", "monitor"]

Progress = Callable[[str, float], None]
"""Is told what the builder does, and which share of the whole is done, 0 to 1."""


@dataclass
class Heard:
    """What was said while somebody listened."""

    lines: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    signals: list[int] = field(default_factory=list)
    """What came meanwhile, such as Ctrl-C; it takes effect when the listening ends."""


@cache
def logger(trt: TensorRT) -> Any:
    """The one logger of the process: TensorRT keeps the first that it is given and ignores all others."""
    base, severity = trt.ILogger, trt.ILogger.Severity

    class Logger(base):  # type: ignore[misc, valid-type]
        """Keeps what is said while somebody listens, and lets nothing reach the terminal."""

        def __init__(self) -> None:
            base.__init__(self)
            self._heard: Heard | None = None

        def log(self, level: Any, message: str) -> None:
            if (heard := self._heard) is None:
                return
            heard.lines.append(message)
            if level in (severity.ERROR, severity.INTERNAL_ERROR):
                heard.errors.append(message)

        @contextmanager
        def heard(self) -> Iterator[Heard]:
            heard = Heard()
            with _held_back(heard.signals):
                self._heard = heard
                try:
                    yield heard
                finally:
                    self._heard = None

    return Logger()


def monitor(trt: TensorRT, progress: Progress | None, heard: Heard) -> Any:
    """What the builder tells its progress to; ``stopped`` is the exception that ended it, if one did.

    The builder is called off for a signal as well. It calls from several threads at once.
    """
    base = trt.IProgressMonitor

    class Monitor(base):  # type: ignore[misc, valid-type]
        """An exception must not pass through the builder: it is kept, and the build is called off."""

        def __init__(self) -> None:
            base.__init__(self)
            self.stopped: BaseException | None = None
            self._lock = threading.Lock()
            self._phases: dict[str, _Phase] = {}
            self._reached = 0.0

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            with self._kept():
                self._phases[name] = _Phase(parent, max(1, steps))

        def step_complete(self, name: str, step: int) -> bool:
            with self._kept():
                if name in self._phases:
                    self._phases[name].done = step + 1
                self._tell(name)
            return self.stopped is None and not heard.signals

        def phase_finish(self, name: str) -> None:
            with self._kept():
                phase = self._phases.get(name)
                if phase is not None and phase.parent not in self._phases:
                    phase.done = phase.steps
                    self._tell(name)
                self._phases.pop(name, None)

        @contextmanager
        def _kept(self) -> Iterator[None]:
            try:
                with self._lock:
                    yield
            except BaseException as error:  # noqa: BLE001 - raised again once the builder is done
                self.stopped = self.stopped or error

        def _tell(self, name: str) -> None:
            self._reached = max(self._reached, _share(self._phases))
            if progress is not None:
                progress(name, self._reached)

    return Monitor()


@contextmanager
def _held_back(came: list[int]) -> Iterator[None]:
    """Signals are noted and take effect at the end: TensorRT swallows what is raised in what it calls."""
    handlers = {}
    if threading.current_thread() is threading.main_thread():  # no other is interrupted, or may set handlers
        handlers = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
    # None is a handler that Python cannot put back.
    kept = {kind: handler for kind, handler in handlers.items() if handler not in (None, signal.SIG_IGN)}
    for kind in kept:
        signal.signal(kind, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for kind, handler in kept.items():
            signal.signal(kind, handler)
        for number in came[:1]:
            signal.raise_signal(number)


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


def _share(phases: Mapping[str, _Phase]) -> float:
    """The share that is done of the outermost phase, counting what is done of those within it."""

    def within(name: str) -> float:
        phase = phases[name]
        inner = sum(within(child) for child, its in phases.items() if its.parent == name)
        return min(1.0, (phase.done + min(1.0, inner)) / phase.steps)

    outer = [name for name, phase in phases.items() if phase.parent not in phases]
    return within(outer[0]) if outer else 1.0
