"""Saying how far a long run is: a bar that moves on a terminal, a line now and then anywhere else."""

import sys
import time
from dataclasses import dataclass, field

__all__ = ["Progress"]

WIDTH = 30
"""Characters of the bar."""
EVERY_SECONDS = 10.0
"""Between two lines of one stage, where there is no terminal."""


@dataclass
class Progress:
    """Writes to stderr; stdout is for results."""

    stage: str = ""
    began: float = 0.0
    said: float = field(default=-EVERY_SECONDS)

    def __call__(self, stage: str, done: int, total: int, remark: str = "") -> None:
        """Say that ``done`` of ``total`` parts of a stage are done."""
        now = time.monotonic()
        if stage != self.stage:
            self.stage, self.began, self.said = stage, now, -EVERY_SECONDS
        if sys.stderr.isatty():
            filled = WIDTH * done // total
            bar = "█" * filled + "·" * (WIDTH - filled)
            text = f"\r{stage} {bar} {done}/{total} {_left(now - self.began, done, total)} {remark}\033[K"
            sys.stderr.write(text + ("\n" if done == total else ""))
        elif done == total or now - self.said >= EVERY_SECONDS:
            self.said = now
            sys.stderr.write(f"{stage}: {done} of {total} {remark}".rstrip() + "\n")
        sys.stderr.flush()


def _left(spent: float, done: int, total: int) -> str:
    """The time that is left, guessed from the time that was spent, in seconds."""
    left = round(spent / done * (total - done))
    return f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
