"""How far every voxel is from the border of a region: what the boundary loss is made of."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["signed_distances"]


def signed_distances(masks: NDArray[np.float32], spacing: tuple[float, float, float]) -> NDArray[np.float32]:
    """Distance of each voxel to the border of its region in mm, negative inside: (i, j, k, R) -> the same.

    Half a voxel is not made up for, as in Kervadec et al. 2019. 0 everywhere for an absent region and for one
    that is everywhere, whose border is not to be seen.
    """
    distances = np.zeros(masks.shape, np.float32)
    for r in range(masks.shape[-1]):
        inside = masks[..., r] > 0.5
        if inside.any() and not inside.all():
            outwards = ndimage.distance_transform_edt(~inside, sampling=spacing)
            inwards = ndimage.distance_transform_edt(inside, sampling=spacing)
            distances[..., r] = outwards - inwards
    return distances
