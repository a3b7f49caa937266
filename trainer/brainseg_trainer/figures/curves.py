"""Pictures of a run, drawn without a display."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes

from brainseg_trainer.figures.canvas import colour, new_figure, save

__all__ = ["draw_curves"]


def draw_curves(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """Training curves over the steps: loss, Dice per region on held-out scans, learning rate.

    ``rows`` are those of ``history.csv``.

    Raises:
        OutputUnwritable: ``E_OUTPUT``.
    """
    figure = new_figure(10, 6.5, "Training")
    loss, scores = figure.subplots(2, 1, sharex=True)
    steps = [row["step"] for row in rows]
    loss.plot(steps, [row["loss"] for row in rows], color="black", label="loss on training tiles")
    loss.set_ylabel("loss (no unit)")
    loss.set_ylim(bottom=0)
    rate = loss.twinx()
    rate.plot(steps, [row["learning_rate"] for row in rows], color="tab:orange", label="learning rate")
    rate.set_ylabel("learning rate (per step)", color="tab:orange")
    rate.set_ylim(bottom=0)
    loss.legend(handles=[*loss.get_lines(), *rate.get_lines()], loc="upper right")
    _draw_scores(scores, rows)
    save(figure, path)


def _draw_scores(axes: Axes, rows: Sequence[Mapping[str, float]]) -> None:
    names = list(dict.fromkeys(key for row in rows for key in row if key.startswith("dice_")))
    for n, name in enumerate(names):
        scored = [(row["step"], row[name]) for row in rows if name in row]
        region = name.removeprefix("dice_")
        label = f"{region} (last {scored[-1][1]:.3f})"
        axes.plot(*zip(*scored, strict=True), marker="o", color=colour(n), label=label)
    axes.set_ylabel("mean Dice on held-out scans (0 to 1)")
    axes.set_ylim(0, 1)
    axes.set_xlabel("training step")
    axes.grid(alpha=0.3)
    if names:
        axes.legend(loc="lower right")
