"""What commands share: an option, and how they end, with a status and one line that says why."""

import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

from brainseg_runtime.errors import BrainsegError

__all__ = ["Keys", "aligned", "end_with"]

Keys = Annotated[
    Path | None,
    typer.Option(
        "--require-signature",
        metavar="KEYS.pem",
        help="Refuse a model that none of these public keys signed.",
        show_default="no",
    ),
]
"""An option of every command that runs or builds the graph of a bundle."""


class _Interrupted(BaseException):
    """Ctrl-C or SIGTERM; not an Exception, so that nothing on the way takes it for a failed scan."""


def end_with(command: Callable[[], object]) -> NoReturn:
    """Run a command and end the process with its exit status."""
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        command()
    except BrainsegError as error:
        typer.echo(str(error), err=True)
        sys.exit(error.exit_status)
    except _Interrupted:
        typer.echo("interrupted", err=True)
        sys.exit(130)
    except MemoryError:
        typer.echo("E_MEMORY: the run does not fit in memory.", err=True)
        sys.exit(8)
    except Exception as error:  # noqa: BLE001
        # Where it arose, without its words: they may hold what stands in a file, and so a patient's name.
        typer.echo("".join(traceback.format_tb(error.__traceback__)), err=True, nl=False)
        typer.echo(f"E_UNEXPECTED: {type(error).__name__}. Please report it.", err=True)
        sys.exit(1)
    sys.exit(0)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of words as lines, each column as wide as its longest word."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    # A second signal must still end a run that hangs while it cleans up.
    signal.signal(signum, signal.SIG_DFL)
    raise _Interrupted
