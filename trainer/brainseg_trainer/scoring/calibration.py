"""Whether probabilities mean what they say, and from which one on a voxel best belongs to a region.

A region's probabilities are those of the runtime's region maps: bytes, 0..255 for 0..1, an outer region never
less likely than one inside it. So counts by byte and truth hold all that is needed, however many voxels and
scans there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["CANDIDATES", "Histogram", "best_threshold", "brier", "calibration_error", "count"]

CANDIDATES = tuple(n / 20 for n in range(1, 20))
"""Thresholds that are tried: 0.05 to 0.95."""
BINS = 15
"""Of the calibration error (Guo 2017)."""

Counts = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Histogram:
    """One region of one scan: how many voxels have which probability."""

    outside: Counts
    """(256,): voxels that the truth does not hold."""
    inside: Counts
    """(256,): voxels of the truth."""

    def dice(self, threshold: float) -> float:
        """Overlap with the truth of the voxels from a probability on; two empty masks agree: 1."""
        first = int(np.ceil(255 * threshold))
        both = int(self.inside[first:].sum())
        total = both + int(self.outside[first:].sum()) + int(self.inside.sum())
        return 2.0 * both / total if total else 1.0


def count(probabilities: NDArray[np.uint8], truth: NDArray[np.bool_]) -> Histogram:
    """Count voxels (...) by probability and truth."""
    return Histogram(
        np.bincount(probabilities[~truth], minlength=256), np.bincount(probabilities[truth], minlength=256)
    )


def best_threshold(histograms: Sequence[Histogram]) -> float:
    """The candidate with the highest mean Dice over scans that have the region; of equals, nearest 0.5."""
    there = [scan for scan in histograms if scan.inside.any()] or histograms
    means = {t: float(np.mean([scan.dice(t) for scan in there])) for t in CANDIDATES}
    return max(means, key=lambda t: (round(means[t], 6), -abs(t - 0.5)))


def brier(histograms: Sequence[Histogram]) -> float:
    """Mean squared difference of probability and truth over all voxels (Brier 1950)."""
    outside, inside = _sums(histograms)
    p = np.arange(256) / 255
    return float((outside @ p**2 + inside @ (1 - p) ** 2) / (outside.sum() + inside.sum()))


def calibration_error(histograms: Sequence[Histogram]) -> float:
    """Mean distance between probability and share of truth, over 15 bins of equal width (Guo 2017)."""
    outside, inside = _sums(histograms)
    p = np.arange(256) / 255
    voxels = outside + inside
    place = np.minimum((p * BINS).astype(np.intp), BINS - 1)
    said = np.bincount(place, voxels * p, BINS)
    true = np.bincount(place, inside, BINS)
    return float(np.abs(said - true).sum() / voxels.sum())


def _sums(histograms: Sequence[Histogram]) -> tuple[Counts, Counts]:
    outside: Counts = np.sum([scan.outside for scan in histograms], axis=0)
    inside: Counts = np.sum([scan.inside for scan in histograms], axis=0)
    return outside, inside
