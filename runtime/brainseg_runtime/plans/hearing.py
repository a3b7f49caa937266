"""What TensorRT says while it works: its log, and how far it is."""

# ruff: noqa: ANN401 - what TensorRT hands over has no types

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
            self._heard = heard = Heard()
            try:
                yield heard
            finally:
                self._heard = None

    return Logger()


def monitor(trt: TensorRT, progress: Progress | None) -> Any:
    """What the builder tells its progress to; ``stopped`` is the exception that ended it, if one did."""
    base = trt.IProgressMonitor

    class Monitor(base):  # type: ignore[misc, valid-type]
        """An exception must not pass through the builder: it is kept, and the build is called off."""

        def __init__(self) -> None:
            base.__init__(self)
            self.stopped: BaseException | None = None
            self._phases: dict[str, _Phase] = {}
            self._reached = 0.0

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self._phases[name] = _Phase(parent, max(1, steps))

        def step_complete(self, name: str, step: int) -> bool:
            if name in self._phases:
                self._phases[name].done = step + 1
            self._tell(name)
            return self.stopped is None

        def phase_finish(self, name: str) -> None:
            phase = self._phases.get(name)
            if phase is not None and phase.parent not in self._phases:
                phase.done = phase.steps
                self._tell(name)
            self._phases.pop(name, None)

        def _tell(self, name: str) -> None:
            try:
                self._reached = max(self._reached, _share(self._phases))
                if progress is not None:
                    progress(name, self._reached)
            except BaseException as error:  # noqa: BLE001 - Ctrl-C too: raised again once the builder is done
                self.stopped = self.stopped or error

    return Monitor()


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
