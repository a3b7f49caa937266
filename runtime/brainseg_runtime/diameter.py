"""How large a lesion is across."""

import numpy as np
from numpy.typing import NDArray

from brainseg_runtime.geometry import Geometry
from brainseg_runtime.labels import components

__all__ = ["largest_diameter", "largest_in_slice"]

_CHUNK = 1024
"""Points that are compared with all others at a time."""


def largest_diameter(mask: NDArray[np.bool_], geometry: Geometry) -> float:
    """The largest distance between two voxel centres of one connected piece of a mask, in mm; 0 if empty."""
    return _largest(_cropped(mask), (0, 1, 2), geometry, 0.0)


def largest_in_slice(mask: NDArray[np.bool_], geometry: Geometry) -> float:
    """The same within single slices (I, J) of the scan, as it is measured on a screen."""
    best = 0.0
    cropped = _cropped(mask)
    for k in range(cropped.shape[2]):
        best = _largest(cropped[:, :, k : k + 1], (0, 1), geometry, best)
    return best


def _cropped(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    for axis in range(3):
        (hit,) = np.nonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        box = slice(hit[0], hit[-1] + 1) if hit.size else slice(0, 0)
        mask = mask[(slice(None),) * axis + (box,)]
    return mask


def _largest(mask: NDArray[np.bool_], axes: tuple[int, ...], geometry: Geometry, known: float) -> float:
    """The largest diameter of the connected pieces of a mask, if it is larger than the known one."""
    if not mask.any():
        return known
    pieces = components(mask)
    sizes = np.bincount(pieces.ravel())
    diagonal = float(np.linalg.norm(geometry.spacing))
    for piece in np.argsort(-sizes[1:], kind="stable") + 1:
        # A connected piece of n voxels is at most n - 1 diagonals long.
        if (sizes[piece] - 1) * diagonal <= known:
            break
        known = max(known, _diameter(_ends(_cropped(pieces == piece), axes), geometry, known))
    return known


def _ends(piece: NDArray[np.bool_], axes: tuple[int, ...]) -> NDArray[np.intp]:
    """The voxels of a piece that are first or last in their line along each of some axes, (N, 3)."""
    ends = piece.copy()
    for axis in axes:
        ends &= (np.cumsum(piece, axis=axis) == 1) | (_reversed_count(piece, axis) == 1)
    return np.argwhere(ends)


def _reversed_count(piece: NDArray[np.bool_], axis: int) -> NDArray[np.intp]:
    counts: NDArray[np.intp] = np.flip(np.cumsum(np.flip(piece, axis), axis=axis), axis)
    return counts


def _diameter(points: NDArray[np.intp], geometry: Geometry, known: float) -> float:
    """The largest distance between points, in mm, if it is larger than the known one."""
    places = points @ geometry.affine[:3, :3].T
    places = places - places.mean(axis=0)
    radius = np.linalg.norm(places, axis=1)
    order = np.argsort(radius)[::-1]
    places, radius = places[order], radius[order]
    best = known
    for start in range(0, len(places), _CHUNK):
        # Two points are no farther apart than their distances from the middle together.
        if 2 * radius[start] <= best:
            break
        rows = places[start : start + _CHUNK]
        others = places[start : np.searchsorted(-radius, radius[start] - best, side="right")]
        squares = (rows**2).sum(1)[:, None] + (others**2).sum(1) - 2 * rows @ others.T
        best = max(best, float(np.sqrt(max(squares.max(), 0.0))))
    return best
