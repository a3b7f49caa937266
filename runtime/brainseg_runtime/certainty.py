"""What a network's answer says beside the labels: how sure it is of every region, and the maps of that."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from brainseg_runtime.labels import decide
from brainseg_runtime.preprocess import Placement
from brainseg_runtime.spec import ModelSpec, Region

__all__ = ["Survey", "VolumeRange", "levels", "log_odds", "within"]

MARGIN = 0.619
"""Half the width of doubt, in log-odds: around a threshold of 0.5 the probabilities 0.35 to 0.65."""


@dataclass(frozen=True)
class VolumeRange:
    """A region's volume if its threshold were stricter or laxer by ``MARGIN``, before specks are dropped."""

    surely_ml: float
    decided_ml: float
    perhaps_ml: float


class Survey:
    """Decides labels for ``restore``, and takes down on the way what the labels alone do not say.

    It relies on ``restore`` handing over the slabs of the brain's box in order.
    """

    def __init__(self, spec: ModelSpec, *, keep_maps: bool = False) -> None:
        """``keep_maps``: keep the probability of every region, a byte a voxel."""
        self._spec = spec
        self._keep = keep_maps
        self._counts = np.zeros((len(spec.regions), 3), dtype=np.int64)
        self._slabs: list[NDArray[np.uint8]] = []

    def __call__(self, logits: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Labels of a slab, (..., R) -> (...)."""
        odds = log_odds(logits, self._spec)
        reached = [
            [np.count_nonzero(odds[r] >= level) for level in row] for r, row in enumerate(levels(self._spec))
        ]
        self.count(np.array(reached, dtype=np.int64))
        if self._keep:
            maps = [_as_byte(odds[r], region, self._spec) for r, region in enumerate(self._spec.regions)]
            self._slabs.append(np.stack(maps, axis=-1))
        return decide(logits, self._spec)

    def count(self, counts: NDArray[np.int64]) -> None:
        """Take down voxels that were counted elsewhere, (regions, 3) in the order of ``levels``."""
        self._counts += counts

    def ranges(self, voxel_volume: float) -> dict[str, VolumeRange]:
        """How far every region's volume depends on where the threshold lies; ``voxel_volume`` in mm3."""
        ml = self._counts * (voxel_volume / 1000.0)
        return {
            region.name: VolumeRange(*(round(float(x), 4) for x in row))
            for region, row in zip(self._spec.regions, ml, strict=True)
        }

    def maps(self, placement: Placement) -> NDArray[np.uint8] | None:
        """Region maps (I, J, K, R) on the scan's own grid, 0..255 for 0..1; None if none were kept.

        Outside the brain's box the probability is 0.
        """
        if not self._keep:
            return None
        whole = np.zeros((*placement.scan.shape, len(self._spec.regions)), dtype=np.uint8)
        box = placement.reorientation.apply(whole)[placement.box]
        at = 0
        for slab in self._slabs:
            box[at : at + len(slab)] = slab
            at += len(slab)
        return whole


def log_odds(logits: NDArray[np.float32], spec: ModelSpec) -> list[NDArray[np.float32]]:
    """Per region ln(p / (1 - p)) of its probability p, (..., R) -> (...) each.

    Sigmoid models: the logit, raised to that of a region inside where that is larger, since an inner
    region is always part of the outer ones. Softmax models: p is the sum over the region's labels.
    """
    if spec.activation == "softmax":
        shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
        tiny = np.float32(1e-30)
        odds = []
        for region in spec.regions:
            inside = np.isin(spec.channels, region.labels)
            p, rest = shifted[..., inside].sum(axis=-1), shifted[..., ~inside].sum(axis=-1)
            odds.append(np.log(np.maximum(p, tiny)) - np.log(np.maximum(rest, tiny)))
        return odds
    odds = [logits[..., r] for r in range(len(spec.regions))]
    for r, n in np.argwhere(within(spec)):
        odds[r] = np.maximum(odds[r], logits[..., n])
    return odds


def within(spec: ModelSpec) -> NDArray[np.bool_]:
    """Whether the second region is a part of the first, (regions, regions)."""
    parts = [[set(inner.labels) < set(outer.labels) for inner in spec.regions] for outer in spec.regions]
    return np.array(parts, dtype=bool)


def levels(spec: ModelSpec) -> NDArray[np.float32]:
    """Log-odds from which a region is counted, (regions, 3): stricter, as decided, laxer."""
    middle = np.array([_threshold(region, spec) for region in spec.regions], dtype=np.float32)
    margin = np.float32(MARGIN)
    return np.stack([middle + margin, middle, middle - margin], axis=-1)


def _threshold(region: Region, spec: ModelSpec) -> np.float32:
    """Where a region begins, in log-odds; a softmax model has no thresholds, so that it is 0 there."""
    p = region.threshold if spec.activation == "sigmoid" else 0.5
    return np.float32(np.log(p / (1.0 - p)))


def _as_byte(odds: NDArray[np.float32], region: Region, spec: ModelSpec) -> NDArray[np.uint8]:
    """Probabilities as 0..255, rounded so that a byte never falls on the other side of the threshold."""
    p = 1.0 / (1.0 + np.exp(-np.clip(odds, -80, 80)))
    scaled = (p * 255 + 0.5).astype(np.uint8)
    first = np.uint8(np.ceil(255 * (region.threshold if spec.activation == "sigmoid" else 0.5)))
    above = odds >= _threshold(region, spec)
    bytes_: NDArray[np.uint8] = np.where(above, np.maximum(scaled, first), np.minimum(scaled, first - 1))
    return bytes_
