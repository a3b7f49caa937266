"""Shapes and noise as fields on a voxel grid, in plain NumPy: what anatomy, lesions and shading are made of.

A shape is a field of signed distances in mm, positive inside; partial volume follows from it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Array",
    "Noise",
    "Points",
    "blended",
    "both",
    "either",
    "ellipsoid",
    "fraction",
    "smooth_noise",
    "waves",
]

Array = NDArray[np.float32]
Noise = Callable[[float], Array]
"""Gives smooth noise on a fixed grid: the shortest wavelength in it, in mm -> (I, J, K)."""


@dataclass(frozen=True, eq=False)
class Points:
    """Positions in mm, one per voxel: three arrays (I, J, K)."""

    x: Array
    y: Array
    z: Array

    def radius(self, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Array:
        """Distance from a centre in units of three radii: 1 on the ellipsoid."""
        radius: Array = np.sqrt(_squares(self, centre, radii))
        return radius


def ellipsoid(points: Points, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Array:
    """Distance to an ellipsoid's surface in mm, to first order: exact near the surface."""
    k = points.radius(centre, radii)
    a, b, c = radii
    slope: Array = np.sqrt(_squares(points, centre, (a * a, b * b, c * c)))
    distance: Array = (1 - k) * k / (slope + np.float32(1e-6))
    return distance


def either(*shapes: Array) -> Array:
    """The union of shapes: the largest distance, or fraction."""
    return reduce(np.maximum, shapes)


def both(*shapes: Array) -> Array:
    """What shapes share: the smallest distance, or fraction."""
    return reduce(np.minimum, shapes)


def blended(a: Array, b: Array, blend: float) -> Array:
    """The union of two shapes, their seam rounded over ``blend`` mm; minus it for an intersection."""
    overlap = np.maximum(np.float32(blend) - np.abs(a - b), 0)
    joined: Array = np.maximum(a, b) + overlap * overlap * np.float32(0.25 / blend)
    return joined


def fraction(distance: Array, width: float) -> Array:
    """The part of a voxel inside a shape, 0..1: its surface blurred linearly over ``width`` mm."""
    share: Array = np.clip(distance * np.float32(1.0 / width) + np.float32(0.5), 0, 1)
    return share


def smooth_noise(
    shape: tuple[int, int, int], wavelengths: tuple[float, float, float], rng: np.random.Generator
) -> Array:
    """Gaussian noise (I, J, K) of mean 0 and deviation 1, nothing in it shorter than so many voxels per axis.

    Cubic B-splines through a coarse grid of normal numbers, one axis after the other.
    """
    steps = [max(wavelength / 2.0, 1.0) for wavelength in wavelengths]
    knots = [int((n - 1) / step) + 4 for n, step in zip(shape, steps, strict=True)]
    noise = rng.standard_normal(knots, dtype=np.float32)
    for axis, (length, step) in enumerate(zip(shape, steps, strict=True)):
        noise = _spline(noise, length, step, axis)
    noise -= noise.mean()
    noise /= noise.std() + np.float32(1e-6)
    return noise


def waves(points: Points, wavelength: float, rng: np.random.Generator) -> Array:
    """Plane waves of one length, in mm, from random directions: noise of deviation 1 with one scale.

    Its zero level is a labyrinth of sheets half a wavelength apart, as the folds of the cortex are
    (random waves: Berry 1977).
    """
    directions = rng.standard_normal((WAVES, 3)).astype(np.float32)
    directions *= np.float32(2.0 * np.pi / wavelength) / np.linalg.norm(directions, axis=1, keepdims=True)
    phases = rng.uniform(0.0, 2.0 * np.pi, WAVES).astype(np.float32)
    total = np.zeros_like(points.x)
    for (a, b, c), phase in zip(directions, phases, strict=True):
        total += np.cos(a * points.x + b * points.y + c * points.z + phase)
    total *= np.float32(np.sqrt(2.0 / WAVES))
    return total


WAVES = 14
"""Waves in a sum; enough for it to look the same in every direction."""


def _squares(points: Points, centre: tuple[float, float, float], scales: tuple[float, float, float]) -> Array:
    total = np.zeros_like(points.x)
    for values, middle, scale in zip((points.x, points.y, points.z), centre, scales, strict=True):
        part = (values - np.float32(middle)) * np.float32(1.0 / scale)
        total += part * part
    return total


def _spline(knots: Array, length: int, step: float, axis: int) -> Array:
    """Cubic B-spline along one axis, its knots ``step`` voxels apart.

    Four knots reach each voxel, so shifted sums do: a product of matrices would depend on the machine.
    """
    position = np.arange(length) / step
    first = position.astype(np.intp)
    t = position - first
    weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    along = [1] * knots.ndim
    along[axis] = length
    total: Array = np.zeros((), np.float32)
    for n, weight in enumerate(weights):
        share = (weight / 6).astype(np.float32).reshape(along)
        total = total + share * np.take(knots, first + n, axis=axis)
    return total
