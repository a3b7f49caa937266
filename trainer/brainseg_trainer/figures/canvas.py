"""What all pictures share: a figure, the colours of regions, and a file that is whole."""

import io
from pathlib import Path

from brainseg_runtime.files import write_atomically
from brainseg_runtime.views import PALETTE
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ["CONVENTION", "colour", "new_figure", "save"]

CONVENTION = "patient's left on the right"


def new_figure(width: float, height: float, title: str) -> Figure:
    """An empty figure of so many inches, at 110 pixels an inch."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=110)
    figure.suptitle(title)
    return figure


def colour(n: int) -> tuple[float, float, float]:
    """The runtime's colour of the region with that place in the spec, 0 to 1."""
    red, green, blue = PALETTE[n % len(PALETTE)]
    return red / 255, green / 255, blue / 255


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG.

    Raises:
        OutputUnwritable: ``E_OUTPUT``.
    """
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content)
    write_atomically(path, content.getvalue())
