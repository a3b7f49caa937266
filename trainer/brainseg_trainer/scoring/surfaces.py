"""How far two surfaces lie apart, in mm, on voxels of any shape.

A mask's surface is made of its voxels that have one of their six neighbours outside; beyond the grid is
outside. Distances are taken between voxel centres.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["ABSENT_MM", "SurfaceDistances", "box_of", "surface", "surface_distances"]

Mask = NDArray[np.bool_]
Distances = NDArray[np.float64]

ABSENT_MM = 374.0
"""BraTS' distance to a surface that does not exist: the diagonal of its grid of 240 x 240 x 155 mm."""


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """From every surface voxel of each mask to the other one's surface, in mm."""

    from_answer: Distances
    from_truth: Distances

    @property
    def one_is_empty(self) -> bool:
        """Whether exactly one of the masks has no voxel."""
        return (self.from_answer.size == 0) != (self.from_truth.size == 0)

    @property
    def both_are_empty(self) -> bool:
        """Whether neither mask has a voxel."""
        return self.from_answer.size == 0 and self.from_truth.size == 0

    @property
    def hd95(self) -> float:
        """The larger of the two directed 95th percentiles (Huttenlocher 1993), in mm."""
        if self.both_are_empty:
            return 0.0
        if self.one_is_empty:
            return ABSENT_MM
        return float(max(np.percentile(self.from_answer, 95), np.percentile(self.from_truth, 95)))

    @property
    def assd(self) -> float:
        """Mean over the voxels of both surfaces, in mm."""
        if self.both_are_empty:
            return 0.0
        if self.one_is_empty:
            return ABSENT_MM
        return float(np.concatenate([self.from_answer, self.from_truth]).mean())

    def nsd(self, tolerance: float) -> float:
        """The part of both surfaces that lies within ``tolerance`` mm of the other (Nikolov 2018)."""
        if self.both_are_empty:
            return 1.0
        if self.one_is_empty:
            return 0.0
        return float((np.concatenate([self.from_answer, self.from_truth]) <= tolerance).mean())


def surface_distances(answer: Mask, truth: Mask, spacing: tuple[float, float, float]) -> SurfaceDistances:
    """Measure two masks (I, J, K) on a grid of voxels of ``spacing`` mm."""
    nothing = np.empty(0, np.float64)
    if not answer.any() or not truth.any():
        alone = np.full(1, ABSENT_MM)
        return SurfaceDistances(alone if answer.any() else nothing, alone if truth.any() else nothing)
    box = box_of(answer | truth)
    one, other = surface(answer[box]), surface(truth[box])
    to_one = ndimage.distance_transform_edt(~one, sampling=spacing)
    to_other = ndimage.distance_transform_edt(~other, sampling=spacing)
    return SurfaceDistances(to_other[one], to_one[other])


def surface(mask: Mask) -> Mask:
    """The voxels of a mask that touch its outside by a face."""
    inner: Mask = ndimage.binary_erosion(mask)
    return mask & ~inner


def box_of(mask: Mask, margin: int = 0) -> tuple[slice, ...]:
    """The part of a grid that holds a mask and a margin around it; one voxel for an empty mask."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(a for a in range(mask.ndim) if a != axis)
        (hit,) = np.nonzero(mask.any(axis=others))
        if hit.size == 0:
            return (slice(0, 1),) * mask.ndim
        box.append(slice(max(0, int(hit[0]) - margin), int(hit[-1]) + 1 + margin))
    return tuple(box)
