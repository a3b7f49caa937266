"""Pictures of a run, drawn without a display."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from brainseg_runtime.files import write_atomically
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ["draw_curves"]

REGION_COLOURS = {"WT": "tab:green", "TC": "tab:blue", "ET": "tab:red"}


def draw_curves(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """Training curves over the steps: loss, Dice per region on held-out scans, learning rate.

    ``rows`` are those of ``history.csv``.

    Raises:
        OutputUnwritable: ``E_OUTPUT``.
    """
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    loss, scores = figure.subplots(2, 1, sharex=True)
    steps = [row["step"] for row in rows]
    loss.plot(steps, [row["loss"] for row in rows], color="black", label="loss on training tiles")
    loss.set_ylabel("Dice + cross-entropy (no unit)")
    loss.set_ylim(bottom=0)
    rate = loss.twinx()
    rate.plot(steps, [row["learning_rate"] for row in rows], color="tab:orange", label="learning rate")
    rate.set_ylabel("learning rate (per step)", color="tab:orange")
    rate.set_ylim(bottom=0)
    loss.legend(handles=[*loss.get_lines(), *rate.get_lines()], loc="upper right")
    _draw_scores(scores, rows)
    _save(figure, path)


def _draw_scores(axes: Axes, rows: Sequence[Mapping[str, float]]) -> None:
    names = sorted({key for row in rows for key in row if key.startswith("dice_")}, reverse=True)
    for name in names:
        scored = [(row["step"], row[name]) for row in rows if name in row]
        region = name.removeprefix("dice_")
        label = f"{region} (last {scored[-1][1]:.3f})"
        axes.plot(*zip(*scored, strict=True), marker="o", color=REGION_COLOURS.get(region), label=label)
    axes.set_ylabel("mean Dice on held-out scans (0 to 1)")
    axes.set_ylim(0, 1)
    axes.set_xlabel("training step")
    axes.grid(alpha=0.3)
    if names:
        axes.legend(loc="lower right")


def _save(figure: Figure, path: Path) -> None:
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content)
    write_atomically(path, content.getvalue())
