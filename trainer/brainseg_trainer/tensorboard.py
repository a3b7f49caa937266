"""The rows of a run's history as events that TensorBoard shows while the run goes on."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from brainseg_runtime.errors import EngineUnavailable

from brainseg_trainer.run import Row

__all__ = ["Board", "board_in"]


class Board(Protocol):
    """Takes the rows of a history, one after the other."""

    def __call__(self, row: Row, /) -> None:
        """Show a row at its step."""


@contextmanager
def board_in(folder: Path) -> Iterator[Board]:
    """A board whose events lie in a folder; a resumed run writes those since its checkpoint again, the same.

    Raises:
        EngineUnavailable: ``E_EXTRA_MISSING`` where TensorBoard is not installed.
    """
    try:
        from tensorboard.summary import Writer
    except ImportError as error:
        raise EngineUnavailable(
            "E_EXTRA_MISSING", "TensorBoard is not installed.", 'pip install "brainseg-trainer[tensorboard]"'
        ) from error
    writer = Writer(str(folder))

    def show(row: Row) -> None:
        for name, value in row.items():
            if name != "step":
                writer.add_scalar(name, value, int(row["step"]))
        writer.flush()

    try:
        yield show
    finally:
        writer.close()
