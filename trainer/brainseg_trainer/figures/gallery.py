"""What a data set holds: how much of each kind, slices with their masks, and the tumours themselves."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from brainseg_runtime.views import PLANES
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from brainseg_trainer.figures.canvas import CONVENTION, colour, new_figure, save
from brainseg_trainer.figures.cases import Case, largest_cut, shown_modality

__all__ = ["draw_classes", "draw_slices", "draw_tumours", "draw_volumes"]

COLUMNS = 4
MARGIN = 0.15
"""Around a tumour, relative to its size."""


def draw_classes(counts: Mapping[str, Mapping[str, int]], path: Path) -> None:
    """Bars of how many there are: what is counted (``slices``, ``patients``) -> type -> number."""
    figure = new_figure(8, 4.2, "Types of tumour in the data")
    axes = figure.subplots(1, len(counts), squeeze=False)[0]
    for panel, (what, numbers) in zip(axes, counts.items(), strict=True):
        names = list(numbers)
        bars = panel.bar(
            names, [numbers[name] for name in names], color=[colour(n) for n in range(len(names))]
        )
        panel.bar_label(bars)
        panel.set_ylabel(f"number of {what}")
        panel.margins(y=0.12)
    save(figure, path)


def draw_volumes(volumes: Mapping[str, Sequence[float]], path: Path) -> None:
    """Volumes in ml of every region over the scans, one histogram below the other."""
    scans = len(next(iter(volumes.values())))
    figure = new_figure(8, 1.8 * len(volumes) + 1, f"Volumes of the regions in {scans} scans")
    panels = figure.subplots(len(volumes), 1, sharex=True, squeeze=False)[:, 0]
    edges = np.linspace(0, max(max(values) for values in volumes.values()) or 1.0, 25)
    for n, (panel, (region, values)) in enumerate(zip(panels, volumes.items(), strict=True)):
        median = float(np.median(values))
        panel.hist(values, bins=edges, color=colour(n), label=region)
        panel.axvline(median, color="black", linestyle="--", label=f"median {median:.1f} ml")
        panel.set_ylabel("scans")
        panel.legend(loc="upper right")
    panels[-1].set_xlabel("volume (ml)")
    save(figure, path)


def draw_slices(found: Sequence[Case], path: Path) -> None:
    """The axial slice with most tumour of several scans, regions in colour over grey."""
    rows = -(-len(found) // COLUMNS)
    figure = new_figure(3 * COLUMNS, 3.2 * rows + 0.8, f"Slices with their truth ({_convention(found)})")
    panels = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for panel, case in zip(panels, found, strict=False):
        at = largest_cut(case.truth.labels, PLANES[0].axis)
        _show(panel, case, at, alpha=0.45)
        panel.set_title(case.title, fontsize=8)
    for panel in panels:
        panel.set_axis_off()
    figure.legend(handles=legend_of(found[0]), loc="outside lower center", ncols=6)
    save(figure, path)


def draw_tumours(found: Sequence[Case], path: Path) -> None:
    """The same slices cut to the tumour and a margin, each with a bar of 10 mm."""
    rows = -(-len(found) // COLUMNS)
    figure = new_figure(3 * COLUMNS, 3.2 * rows + 0.8, f"Tumours, cut out ({_convention(found)})")
    panels = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for panel, case in zip(panels, found, strict=False):
        at = largest_cut(case.truth.labels, PLANES[0].axis)
        _show(panel, case, at, alpha=0.0)
        width, height = _around(panel, case, at)
        panel.plot([width[0] + 3, width[0] + 13], [height[0] - 3] * 2, color="white", linewidth=3)
        panel.set_title(f"{case.title} (bar: 10 mm)", fontsize=8)
    for panel in panels:
        panel.set_axis_off()
    save(figure, path)


def overlay(labels: np.ndarray, case: Case) -> np.ndarray:
    """(rows, columns) labels -> (rows, columns, 4): the colour of the innermost region, clear elsewhere."""
    picture = np.zeros((*labels.shape, 4))
    for n, values in enumerate(case.labels.regions.values()):
        inside = np.isin(labels, values)
        picture[inside] = (*colour(n), 1.0)
    return picture


def legend_of(case: Case) -> list[Patch]:
    """A patch of colour for every region."""
    return [Patch(color=colour(n), label=region) for n, region in enumerate(case.labels.regions)]


def _convention(found: Sequence[Case]) -> str:
    """Which side is which, as far as the data say it: figshare's slices do not."""
    return "sides not known" if found[0].kind else CONVENTION


def _show(panel: Axes, case: Case, at: int, alpha: float) -> None:
    """The axial slice ``at``, its truth over it as opaque as ``alpha`` says."""
    plane = PLANES[0]
    width, height = plane.size(case.truth.extent)
    grey = plane.cut(case.truth.images[shown_modality(case)], at)
    panel.imshow(grey, cmap="gray", extent=(0, width, height, 0))
    if alpha:
        painted = overlay(plane.cut(case.truth.labels, at), case)
        painted[..., 3] *= alpha
        panel.imshow(painted, extent=(0, width, height, 0), interpolation="nearest")


def _around(panel: Axes, case: Case, at: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Zoom in on the tumour; the limits in mm, across and down."""
    inside = PLANES[0].cut(case.truth.labels, at) > 0
    rows, columns = np.nonzero(inside)
    across, down = case.truth.spacing[0], case.truth.spacing[1]
    if not len(rows):
        return panel.get_xlim(), panel.get_ylim()
    side = max(np.ptp(columns) * across, np.ptp(rows) * down, 12.0) * (0.5 + MARGIN)
    x, y = (columns.min() + columns.max()) / 2 * across, (rows.min() + rows.max()) / 2 * down
    panel.set_xlim(x - side, x + side)
    panel.set_ylim(y + side, y - side)
    return (x - side, x + side), (y + side, y - side)
