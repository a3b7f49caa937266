"""What a trial is given and what it finds."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Row", "Setup", "Trial"]


@dataclass(frozen=True)
class Setup:
    """What every trial may use."""

    place: Path
    """A folder of its own."""
    bundle: Path
    """A sound bundle."""
    scans: Path
    """A folder of sound scans that the bundle segments."""
    share: float = 1.0
    """How much of the full numbers is tried; 1 makes docs/reliability.md, the suite takes less."""
    data: Path | None = None
    """The folder of real scans, if there is one."""

    def count(self, full: int, least: int = 1) -> int:
        """How many of ``full`` are tried."""
        return max(least, round(full * self.share))


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    tried: str
    found: str
    held: bool | None
    """Whether the goal was met; None for a number that is told and has no goal."""


Trial = Callable[[Setup], Iterator[Row]]
