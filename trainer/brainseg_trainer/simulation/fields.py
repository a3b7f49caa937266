"""Noise, blur and sampling on a voxel grid in JAX, compiled into the drawing of heads."""

from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp

__all__ = ["Array", "blurred", "chance", "choice", "compiled", "nearest", "noise", "rotation", "uniform"]

Array = Any
"""A JAX array; mypy does not follow JAX."""
REACH = 5
"""Voxels that a blur looks to either side where nothing else is said; enough up to a sigma of about 2."""


P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """A function that is compiled when it is first called, anew for every shape."""
    made: Callable[P, R] = jax.jit(function)
    return made


def uniform(key: Array, low: float, high: float, shape: Sequence[int] = ()) -> Array:
    """Evenly between two numbers."""
    return jax.random.uniform(key, tuple(shape), minval=low, maxval=high)


def chance(key: Array, share: float, shape: Sequence[int] = ()) -> Array:
    """1 as often as ``share`` says, else 0."""
    return jax.random.bernoulli(key, share, tuple(shape)).astype(jnp.float32)


def choice(key: Array, allowed: Array) -> Array:
    """The index of one of the entries (n,) that are allowed."""
    return jax.random.categorical(key, jnp.where(allowed, 0.0, -jnp.inf))


def noise(key: Array, shape: Sequence[int], wavelength: float, spacing: Sequence[float]) -> Array:
    """Gaussian noise (i, j, k) of mean 0 and deviation 1, about nothing in it shorter than so many mm."""
    knots = [max(2, round(2 * n * mm / wavelength)) for n, mm in zip(shape, spacing, strict=True)]
    coarse = jax.random.normal(key, knots)
    fine = jax.image.resize(coarse, tuple(shape), "cubic")
    return (fine - fine.mean()) / (fine.std() + 1e-6)


def blurred(
    field: Array, sigma: Array | float, *, axes: Sequence[int] = (-3, -2, -1), reach: int = REACH
) -> Array:
    """A Gaussian blur (..., i, j, k), ``sigma`` in voxels; ``reach`` is how many it looks to either side."""
    steps = jnp.arange(-reach, reach + 1)
    weights = jnp.exp(-0.5 * jnp.square(steps / jnp.maximum(sigma, 1e-3)))
    weights = weights / weights.sum()
    for axis in axes:
        padding = [(0, 0)] * field.ndim
        padding[axis] = (reach, reach)
        padded = jnp.pad(field, padding, mode="edge")
        length = field.shape[axis]
        field = sum(
            weights[n] * jax.lax.slice_in_dim(padded, n, n + length, axis=axis) for n in range(2 * reach + 1)
        )
    return field


def nearest(volume: Array, points: Array) -> Array:
    """Values of a volume (I, J, K) at voxel positions (..., 3); 0 outside."""
    index = jnp.round(points).astype(jnp.int32)
    limits = jnp.array(volume.shape)
    inside = ((index >= 0) & (index < limits)).all(axis=-1)
    i, j, k = jnp.moveaxis(jnp.clip(index, 0, limits - 1), -1, 0)
    return jnp.where(inside, volume[i, j, k], 0)


def rotation(angles: Array) -> Array:
    """Three turns about the axes, in radians, as a matrix (3, 3)."""
    (cx, cy, cz), (sx, sy, sz) = jnp.cos(angles), jnp.sin(angles)
    about_x = jnp.array([[1.0, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = jnp.array([[cy, 0, sy], [0, 1.0, 0], [-sy, 0, cy]])
    about_z = jnp.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1.0]])
    return about_z @ about_y @ about_x
