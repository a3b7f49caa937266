"""What a data set holds: how much of each kind, slices with their masks, and the tumours themselves."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from brainseg_runtime.views import PLANES, label_colours
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from brainseg_trainer.figures.canvas import CONVENTION, colour, new_figure, save
from brainseg_trainer.figures.cases import Case, largest_cut

__all__ = ["draw_classes", "draw_slices", "draw_tumours", "draw_volumes"]

AXIAL = PLANES[0]
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
    figure, panels = _grid(found, "Slices with their truth")
    for panel, case in panels:
        _show(panel, case, alpha=0.45)
        panel.set_title(case.title, fontsize=8)
    figure.legend(handles=legend_of(found[0]), loc="outside lower center", ncols=6)
    save(figure, path)


def draw_tumours(found: Sequence[Case], path: Path) -> None:
    """The same slices cut to the tumour and a margin, each with a bar of 10 mm."""
    figure, panels = _grid(found, "Tumours, cut out")
    for panel, case in panels:
        _show(panel, case, alpha=0.0)
        left, bottom = _around(panel, case)
        panel.plot([left + 3, left + 13], [bottom - 3] * 2, color="white", linewidth=3)
        panel.set_title(f"{case.title} (bar: 10 mm)", fontsize=8)
    save(figure, path)


def overlay(labels: np.ndarray, case: Case, alpha: float) -> np.ndarray:
    """(rows, columns) labels -> (rows, columns, 4): the runtime's colours, as opaque as ``alpha`` says."""
    picture = np.zeros((*labels.shape, 4))
    for value, (red, green, blue) in label_colours(case.labels).items():
        picture[labels == value] = (red / 255, green / 255, blue / 255, alpha)
    return picture


def legend_of(case: Case) -> list[Patch]:
    """A patch of colour for every region."""
    return [Patch(color=colour(n), label=region) for n, region in enumerate(case.labels.regions)]


def _grid(found: Sequence[Case], title: str) -> tuple[Figure, list[tuple[Axes, Case]]]:
    """A figure with a panel for each scan; figshare's slices do not say which side is which."""
    rows = -(-len(found) // COLUMNS)
    convention = "sides not known" if found[0].kind else CONVENTION
    figure = new_figure(3 * COLUMNS, 3.2 * rows + 0.8, f"{title} ({convention})")
    panels = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for panel in panels:
        panel.set_axis_off()
    return figure, list(zip(panels, found, strict=False))


def _show(panel: Axes, case: Case, alpha: float) -> None:
    """The axial slice with most tumour in mm, its truth over it as opaque as ``alpha`` says."""
    at = largest_cut(case.truth.labels, AXIAL.axis)
    width, height = AXIAL.size(case.truth.extent)
    panel.imshow(AXIAL.cut(case.truth.images[case.modality], at), cmap="gray", extent=(0, width, height, 0))
    painted = overlay(AXIAL.cut(case.truth.labels, at), case, alpha)
    panel.imshow(painted, extent=(0, width, height, 0), interpolation="nearest")


def _around(panel: Axes, case: Case) -> tuple[float, float]:
    """Zoom in on the tumour, if there is one; the left and the lower end of what is seen, in mm."""
    labels = AXIAL.cut(case.truth.labels, largest_cut(case.truth.labels, AXIAL.axis))
    rows, columns = np.nonzero(labels)
    across, down, _ = case.truth.spacing
    if len(rows):
        side = max(np.ptp(columns) * across, np.ptp(rows) * down, 12.0) * (0.5 + MARGIN)
        x, y = (columns.min() + columns.max()) / 2 * across, (rows.min() + rows.max()) / 2 * down
        panel.set_xlim(x - side, x + side)
        panel.set_ylim(y + side, y - side)
    return panel.get_xlim()[0], panel.get_ylim()[0]
