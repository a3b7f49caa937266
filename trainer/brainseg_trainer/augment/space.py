"""Where a tile's voxels come from: turned, scaled, bent and mirrored about its centre.

They are taken from the scan itself, so that a turned tile shows anatomy in its corners. Angles and lengths
are in mm, whatever the voxels' size. Where slices lie more than three times as far apart as voxels within
them, all of it happens within slices, as in nnU-Net.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from brainseg_trainer.example import Example
from brainseg_trainer.fields import smooth_noise

__all__ = ["Pose", "cut", "draw", "sample"]

Triple = tuple[float, float, float]
Shape = tuple[int, int, int]
Image = NDArray[np.float32]
Labels = NDArray[np.uint8]


@dataclass(frozen=True)
class Pose:
    """How a tile lies in the scan; the default is upright."""

    angles: Triple = (0.0, 0.0, 0.0)
    """Radians about the axes i, j, k, in that order."""
    scale: Triple = (1.0, 1.0, 1.0)
    """How much larger things become along i, j, k."""
    bend: float = 0.0
    """Deviation of the displacements, as a share of their wavelength."""
    wavelength: float = 64.0
    """Of the displacements, mm."""
    seed: int = 0
    """Of the displacements."""
    mirrored: tuple[bool, bool, bool] = (False, False, False)


def draw(rng: np.random.Generator, spacing: Triple) -> Pose:
    """Choose a pose: rotation and scaling in one tile of five, bending in one of five, mirrors in half.

    Rotation up to 30 degrees about each axis, scaling 0.7 to 1.4, as in nnU-Net's moreDA; one scaling in
    three is different along each axis, as in its DA3.
    """
    turned, scaled, apart, bent = rng.random(4) < (0.2, 0.2, 1 / 3, 0.2)
    angles = np.radians(rng.uniform(-30, 30, 3)) * turned
    # As much smaller as larger.
    logs = rng.uniform(-1, 1, 3)
    scale = np.where(logs < 0, 0.7**-logs, 1.4**logs)
    scale = np.where(scaled, scale if apart else scale[0], np.ones(3))
    bend, wavelength = rng.uniform(0.01, 0.03) * bent, rng.uniform(32, 64)
    mirrored = rng.random(3) < 0.5
    across = _across(spacing)
    if across is not None:
        angles = np.where(np.arange(3) == across, angles, 0.0)
        scale = np.where(np.arange(3) == across, 1.0, scale)
    return Pose(
        angles=(float(angles[0]), float(angles[1]), float(angles[2])),
        scale=(float(scale[0]), float(scale[1]), float(scale[2])),
        bend=float(bend),
        wavelength=float(wavelength),
        seed=int(rng.integers(2**32)),
        mirrored=(bool(mirrored[0]), bool(mirrored[1]), bool(mirrored[2])),
    )


def sample(example: Example, start: Shape, tile: Shape, spacing: Triple, pose: Pose) -> tuple[Image, Labels]:
    """A tile (i, j, k, C) and its labels (i, j, k), which upright begins at voxel ``start`` of the example.

    Intensities are interpolated linearly, labels are the nearest. Beyond the scan is background 0.
    """
    if pose.angles == (0.0, 0.0, 0.0) and pose.scale == (1.0, 1.0, 1.0) and not pose.bend:
        image, labels = cut(example, start, tile)
        steps = tuple(slice(None, None, -1 if mirrored else 1) for mirrored in pose.mirrored)
        return image[steps], labels[steps]
    axes = tuple(1 + axis for axis, mirrored in enumerate(pose.mirrored) if mirrored)
    places = np.flip(_places(start, tile, spacing, pose), axis=axes)
    first = np.floor(places.min(axis=(1, 2, 3))).astype(int)
    last = np.ceil(places.max(axis=(1, 2, 3))).astype(int)
    size = example.labels.shape
    box = tuple(slice(max(int(a), 0), min(int(b) + 1, n)) for a, b, n in zip(first, last, size, strict=True))
    channels = example.data.shape[3]
    image, labels = np.zeros((*tile, channels), np.float32), np.zeros(tile, np.uint8)
    if all(part.start < part.stop for part in box):
        places -= np.array([part.start for part in box], np.float32).reshape(3, 1, 1, 1)
        data = example.data[box]
        for c in range(channels):
            # Scattered voxels of one channel after the other would be read from all over memory.
            channel = np.ascontiguousarray(data[..., c])
            image[..., c] = _taken(channel, places, 1)
        labels = _taken(np.ascontiguousarray(example.labels[box]), places, 0)
    return image, labels


def cut(example: Example, start: Shape, tile: Shape) -> tuple[Image, Labels]:
    """A tile (i, j, k, C) and its labels (i, j, k) as they lie, from ``start`` on; 0 beyond the scan."""
    part = tuple(slice(a, a + n) for a, n in zip(start, tile, strict=True))
    image, labels = np.zeros((*tile, example.data.shape[3]), np.float32), np.zeros(tile, np.uint8)
    inside = example.labels[part]
    i, j, k = inside.shape
    image[:i, :j, :k] = example.data[part]
    labels[:i, :j, :k] = inside
    return image, labels


def _taken(values: NDArray[Any], places: Image, order: int) -> NDArray[Any]:
    # "grid-constant" fades into the background over one voxel, where "constant" would end at once.
    taken: NDArray[Any] = ndimage.map_coordinates(
        values, places, order=order, mode="grid-constant", cval=0, prefilter=False
    )
    return taken


def _places(start: Shape, tile: Shape, spacing: Triple, pose: Pose) -> Image:
    """(3, i, j, k): where in the source each voxel of a tile lies, in voxels."""
    voxel = np.array(spacing)
    middle = np.array(tile) / 2 - 0.5
    offsets = [(np.arange(n) - m) * mm for n, m, mm in zip(tile, middle, spacing, strict=True)]
    # What is to look larger is taken from less of the example.
    matrix = _rotation(pose.angles) / np.array(pose.scale)
    to_voxels = (matrix / voxel[:, None]).astype(np.float32)
    i, j, k = (offset.astype(np.float32) for offset in offsets)
    places = np.empty((3, *tile), np.float32)
    for axis, (a, b, c) in enumerate(to_voxels):
        np.add(a * i[:, None, None] + b * j[:, None], c * k, out=places[axis])
        places[axis] += np.float32(start[axis] + middle[axis])
    if pose.bend:
        rng = np.random.default_rng(pose.seed)
        across = _across(spacing)
        a, b, c = (pose.wavelength / mm for mm in spacing)
        for axis in range(3):
            if axis != across:
                noise = smooth_noise(tile, (a, b, c), rng)
                places[axis] += np.float32(pose.bend * pose.wavelength / spacing[axis]) * noise
    return places


def _rotation(angles: Triple) -> NDArray[np.float64]:
    """Rotation about i, then j, then k: (3, 3)."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        a, b = [n for n in range(3) if n != axis]
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


def _across(spacing: Triple) -> int | None:
    """The axis across slices, where there are slices."""
    coarse = int(np.argmax(spacing))
    return coarse if spacing[coarse] > 3 * min(spacing) else None
