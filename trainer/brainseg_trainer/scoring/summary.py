"""From scores of scans to what is reported of them: mean, median, and how sure the mean is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Summary", "summarise"]

RESAMPLES = 10_000
SEED = 0


@dataclass(frozen=True)
class Summary:
    """One measure of one region over scans; NaN where no scan has a value."""

    count: int
    """Scans that have a value."""
    mean: float
    median: float
    low: float
    """Lower end of the 95 % interval of the mean."""
    high: float
    """Upper end of the 95 % interval of the mean."""


def summarise(values: Sequence[float]) -> Summary:
    """Sum up the values of scans, NaN left out; the interval by percentile bootstrap (Efron 1979)."""
    known = np.array([value for value in values if not np.isnan(value)], dtype=np.float64)
    if known.size == 0:
        return Summary(0, *[float("nan")] * 4)
    drawn = np.random.default_rng(SEED).integers(known.size, size=(RESAMPLES, known.size))
    low, high = np.percentile(known[drawn].mean(axis=1), (2.5, 97.5))
    return Summary(known.size, float(known.mean()), float(np.median(known)), float(low), float(high))
