"""What tissues and the parts of tumours look like on the four images, measured on crops of real lesions."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["PARTS", "Appearances", "measured"]

PARTS = ("fluid", "grey", "white", "necrosis", "oedema", "enhancing")
ENOUGH = 60
"""Voxels that a mean and a spread are taken over."""


@dataclass(frozen=True, eq=False)
class Appearances:
    """Of ``PARTS``, on T1, T1c, T2 and FLAIR, as z-scores over the brain; one entry per crop."""

    means: NDArray[np.float32]
    """(M, 6, 4)."""
    roots: NDArray[np.float32]
    """(M, 6, 4, 4): a root of each covariance, which turns white noise into the part's texture."""
    known: NDArray[np.bool_]
    """(M, 6): whether a crop shows enough of a part; of the healthy ones all or none."""
    enhancing: NDArray[np.bool_]
    """(M,): whether the tumour's core enhances."""


def measured(
    images: NDArray[np.float32], labels: NDArray[np.uint8], inside: NDArray[np.bool_]
) -> Appearances:
    """Appearances of crops: images (M, i, j, k, 4), labels and masks (M, i, j, k)."""
    count = len(images)
    means = np.zeros((count, 6, 4), np.float32)
    roots = np.zeros((count, 6, 4, 4), np.float32)
    known = np.zeros((count, 6), bool)
    enhancing = np.zeros(count, bool)
    for n in range(count):
        healthy = images[n][inside[n] & (labels[n] == 0)]
        parts: list[NDArray[np.float32]] = list(_three_tissues(healthy))
        parts += [images[n][inside[n] & (labels[n] == value)] for value in (1, 2, 3)]
        enough = [len(part) >= ENOUGH for part in parts]
        enough[:3] = [all(len(part) >= 4 * ENOUGH for part in parts[:3])] * 3
        for p, part in enumerate(parts):
            if enough[p]:
                means[n, p] = part.mean(axis=0)
                spread = np.cov(part.T.astype(np.float64)) + 1e-3 * np.eye(4)
                roots[n, p] = np.linalg.cholesky(spread)
        known[n] = enough
        enhancing[n] = len(parts[5]) > 0.1 * (len(parts[3]) + len(parts[5]))
    return Appearances(means, roots, known, enhancing)


def _three_tissues(values: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
    """Fluid, grey and white matter among voxels (n, 4), by 3-means from the middle and the tails of T1."""
    if len(values) < 12 * ENOUGH:
        return values[:0], values[:0], values[:0]
    middles = np.stack(
        [np.median(part, axis=0) for part in np.array_split(values[np.argsort(values[:, 0])], 3)]
    )
    nearest = np.zeros(len(values), np.intp)
    for _ in range(25):
        nearest = np.square(values[:, None] - middles).sum(axis=-1).argmin(axis=1)
        middles = np.stack(
            [values[nearest == n].mean(axis=0) if (nearest == n).any() else middles[n] for n in range(3)]
        )
    # Fluid is bright on T2 and dark on T1 and FLAIR; white matter the other way round on T1.
    order = np.argsort(middles[:, 0] - middles[:, 2])
    return tuple(values[nearest == n] for n in order)
