"""How good the answers are: boxes of Dice, agreement of volumes, and what the threshold does."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from brainseg_trainer.figures.canvas import colour, new_figure, save
from brainseg_trainer.scoring.calibration import CANDIDATES, Histogram

__all__ = ["agreement", "draw_agreement", "draw_boxes", "draw_thresholds"]


def draw_boxes(dice: Mapping[str, Sequence[float]], path: Path) -> None:
    """A box per region over the Dice of scans, every scan a point."""
    scans = len(next(iter(dice.values())))
    figure = new_figure(1.6 * len(dice) + 3, 5, f"Dice of {scans} held-out scans")
    axes = figure.subplots()
    boxes = axes.boxplot(
        list(dice.values()),
        tick_labels=[f"{region}\nmedian {np.median(values):.3f}" for region, values in dice.items()],
        showfliers=False,
        patch_artist=True,
    )
    rng = np.random.default_rng(0)
    for n, (values, box) in enumerate(zip(dice.values(), boxes["boxes"], strict=True)):
        box.set(facecolor=(*colour(n), 0.4))
        axes.scatter(n + 1 + rng.uniform(-0.1, 0.1, len(values)), values, color="black", s=14, zorder=3)
    axes.set_ylabel("Dice (0 to 1)")
    axes.set_ylim(-0.02, 1.02)
    axes.grid(axis="y", alpha=0.3)
    save(figure, path)


def agreement(truth: Sequence[float], answer: Sequence[float]) -> tuple[float, float, float]:
    """Bias of the answer's volumes and the 95 % limits of agreement (Bland and Altman 1986)."""
    apart = np.subtract(answer, truth)
    bias, spread = float(apart.mean()), float(apart.std(ddof=1)) if apart.size > 1 else 0.0
    return bias, bias - 1.96 * spread, bias + 1.96 * spread


def draw_agreement(volumes: Mapping[str, tuple[Sequence[float], Sequence[float]]], path: Path) -> None:
    """Per region (truth, answer in ml): their difference over their mean, with bias and limits."""
    figure = new_figure(4.2 * len(volumes), 4.2, "Volumes: prediction against truth (Bland-Altman)")
    panels = figure.subplots(1, len(volumes), squeeze=False)[0]
    for n, (panel, (region, (truth, answer))) in enumerate(zip(panels, volumes.items(), strict=True)):
        bias, low, high = agreement(truth, answer)
        panel.scatter(
            np.add(truth, answer) / 2, np.subtract(answer, truth), color=colour(n), edgecolor="black"
        )
        panel.axhline(bias, color="black", label=f"bias {bias:+.1f} ml")
        panel.axhline(low, color="black", linestyle="--", label=f"95 % {low:+.1f} to {high:+.1f} ml")
        panel.axhline(high, color="black", linestyle="--")
        panel.set_title(f"{region}, {len(truth)} scans")
        panel.set_xlabel("mean of both (ml)")
        panel.set_ylabel("prediction - truth (ml)")
        panel.margins(y=0.25)
        panel.legend(loc="upper right", fontsize=8)
    save(figure, path)


def draw_thresholds(
    histograms: Mapping[str, Sequence[Histogram]], chosen: Mapping[str, float], path: Path
) -> None:
    """Mean Dice and IoU over scans against the threshold on the probability, the model's own marked."""
    scans = len(next(iter(histograms.values())))
    figure = new_figure(4.2 * len(histograms), 4.2, f"What the threshold does, {scans} held-out scans")
    panels = figure.subplots(1, len(histograms), squeeze=False, sharey=True)[0]
    for n, (panel, (region, found)) in enumerate(zip(panels, histograms.items(), strict=True)):
        dice = np.array([[scan.dice(t) for t in CANDIDATES] for scan in found])
        panel.plot(CANDIDATES, dice.mean(axis=0), color=colour(n), label="mean Dice")
        panel.plot(
            CANDIDATES, (dice / (2 - dice)).mean(axis=0), color=colour(n), linestyle="--", label="mean IoU"
        )
        panel.axvline(chosen[region], color="black", linestyle=":", label=f"model's own {chosen[region]:.2f}")
        panel.set_title(region)
        panel.set_xlabel("threshold on the probability")
        panel.set_ylim(0, 1)
        panel.grid(alpha=0.3)
        panel.legend(loc="lower center", fontsize=8)
    panels[0].set_ylabel("overlap (0 to 1)")
    save(figure, path)
