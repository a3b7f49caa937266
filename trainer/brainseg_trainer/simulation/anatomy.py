"""Where things lie: a healthy head, tumours that push it aside, and what a skull strip leaves of it."""

import jax
import jax.numpy as jnp

from brainseg_trainer.simulation.fields import (
    Array,
    blurred,
    chance,
    compiled,
    nearest,
    noise,
    rotation,
    uniform,
)
from brainseg_trainer.simulation.ingredients import HALF_MM, ORIGIN_MM, SPACING_MM, TISSUES
from brainseg_trainer.simulation.setting import ED, ET, NCR, Setting, Stock

__all__ = ["anatomy", "grid", "grown", "stripped", "tumours"]


def grid(key: Array, shape: tuple[int, int, int]) -> Array:
    """Where voxels lie (i, j, k, 3), in mm about the middle of the brain, which is not quite theirs."""
    axes = [(jnp.arange(n) - (n - 1) / 2) * mm for n, mm in zip(shape, SPACING_MM, strict=True)]
    return jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1) + uniform(key, -4.0, 4.0, (3,))


@compiled
def anatomy(key: Array, points: Array, stock: Stock, setting: Setting) -> Array:
    """Tissue (i, j, k) of a head that is turned, stretched, bent and perhaps mirrored."""
    keys = jax.random.split(key, 8)
    shape = points.shape[:3]
    turned = rotation(uniform(keys[0], -0.2, 0.2, (3,))) * jnp.exp(uniform(keys[1], -0.04, 0.14, (3,)))
    where = points @ turned.T
    amplitude = uniform(keys[2], 0.0, setting.warp_mm)
    bend = jnp.stack([noise(k, shape, 80.0, SPACING_MM) for k in jax.random.split(keys[3], 3)], axis=-1)
    fine = jnp.stack([noise(k, shape, 30.0, SPACING_MM) for k in jax.random.split(keys[4], 3)], axis=-1)
    where = where + amplitude * bend + 0.25 * amplitude * fine
    # Towards the middle more is seen of what lies there, or less: wide and narrow ventricles.
    middle = jnp.exp(-jnp.square(where / jnp.array([22.0, 40.0, 22.0])).sum(axis=-1, keepdims=True))
    where = where * (1 + uniform(keys[5], -0.35, 0.15) * middle)
    where = where * jnp.where(chance(keys[6], 0.5), jnp.array([-1.0, 1, 1]), 1.0)
    head = stock.heads[jax.random.randint(keys[7], (), 0, stock.heads.shape[0])]
    return nearest(head, where + jnp.array(HALF_MM))


@compiled
def tumours(key: Array, points: Array, stock: Stock, setting: Setting) -> tuple[Array, Array]:
    """Labels (i, j, k) of up to two tumours, and where the tissue that they pushed away would be."""
    keys = jax.random.split(key, 4)
    there = chance(keys[0], setting.tumour)
    labels, points = _tumour(keys[1], points, points, 0.0, stock, there)
    second, points = _tumour(keys[2], points, points, -0.5, stock, there * chance(keys[3], setting.second))
    return jnp.where(labels > 0, labels, second), points


def _tumour(
    key: Array, points: Array, tissue: Array, smaller: float, stock: Stock, there: Array
) -> tuple[Array, Array]:
    """An expert's labels, turned, scaled, bent, near where they were; and ``tissue`` pushed outwards."""
    keys = jax.random.split(key, 8)
    shape = points.shape[:3]
    n = jax.random.randint(keys[0], (), 0, stock.tumours.shape[0])
    mirror = jnp.where(chance(keys[1], 0.5), jnp.array([-1.0, 1, 1]), 1.0)
    own = stock.centroids[n]
    scale = jnp.exp(smaller + uniform(keys[2], -0.3, 0.2))
    centre = own * mirror + 6.0 * jax.random.normal(keys[3], (3,))
    away = points - centre
    bend = jnp.stack([noise(k, shape, 40.0, SPACING_MM) for k in jax.random.split(keys[4], 3)], axis=-1)
    turned = (away @ rotation(uniform(keys[5], -0.4, 0.4, (3,))).T) * mirror / scale
    where = own + turned + uniform(keys[6], 0.0, 2.5) * bend
    # From mm about the middle of the brain to voxels of the label volume.
    voxels = (where + jnp.array(ORIGIN_MM)) / jnp.array(SPACING_MM) - 0.5
    labels = nearest(stock.tumours[n], voxels)
    radius = scale * stock.radii[n]
    distance = jnp.linalg.norm(away, axis=-1, keepdims=True)
    push = uniform(keys[7], 0.0, 0.35) * radius * jnp.exp(-jnp.square(distance / (1.6 * radius)))
    moved = tissue - there * push * away / (distance + 1.0)
    return (labels * there.astype(labels.dtype)).astype(jnp.int32), moved


@compiled
def grown(key: Array, tissue: Array, tumour: Array, points: Array, setting: Setting) -> Array:
    """Labels to which a tumour that grew is added: a front that runs faster along white matter than in grey.

    The front of a reaction and diffusion (Swanson et al. 2000) at one time, by its distance from where it
    began over the speed here: no path is followed.
    """
    keys = jax.random.split(key, 9)
    white = (tissue == TISSUES.index("white")) | (tissue == TISSUES.index("stem"))
    fluid = (tissue <= TISSUES.index("ventricle")) | (tissue >= TISSUES.index("surroundings"))
    speed = jnp.where(white, 1.0, jnp.where(fluid, 0.0, uniform(keys[0], 0.4, 0.9)))
    speed = blurred(speed, 1.5)
    limits = jnp.array([55.0, 75.0, 50.0])
    distance = jnp.linalg.norm(points - limits * uniform(keys[1], -1.0, 1.0, (3,)), axis=-1)
    ragged, inner = (jnp.exp(0.3 * noise(k, tissue.shape, 22.0, SPACING_MM)) for k in keys[2:4])
    core = uniform(keys[4], 4.0, 20.0)
    oedema = core + uniform(keys[5], 0.0, 22.0)
    dead = core * uniform(keys[6], 0.0, 0.9) * chance(keys[7], 0.8)
    labels = jnp.where(distance * ragged < oedema * speed, ED, 0)
    labels = jnp.where(distance * ragged < core, ET, labels)
    labels = jnp.where((labels == ET) & (distance * inner < dead), NCR, labels)
    there = (chance(keys[8], setting.grown) > 0) & (tumour == 0) & (speed > 0.15)
    return jnp.where(there, labels, tumour)


@compiled
def stripped(key: Array, tissue: Array) -> tuple[Array, Array]:
    """What a skull strip keeps (i, j, k), and how near its edge a voxel is: 1 there, 0 deep inside.

    Some strips leave more than brain: pieces of eyes, muscle, fat and marrow beside it.
    """
    keys = jax.random.split(key, 5)
    inner = (tissue > TISSUES.index("fluid")) & (tissue < TISSUES.index("surroundings"))
    # Grown over the sulci, then taken back by more or less.
    grown = blurred(inner.astype(jnp.float32), 2.0) > 0.15
    ragged = 0.08 * noise(keys[0], tissue.shape, 25.0, SPACING_MM)
    brain = blurred(grown.astype(jnp.float32), 2.0) + ragged > uniform(keys[1], 0.5, 0.85)
    near = blurred(blurred(grown.astype(jnp.float32), 3.0), 3.0) > uniform(keys[2], 0.02, 0.3)
    pieces = noise(keys[3], tissue.shape, 35.0, SPACING_MM) > 1.0
    outer = (tissue > TISSUES.index("surroundings")) & near & pieces & (chance(keys[4], 0.3) > 0)
    brain = brain | outer
    inside = blurred(blurred(brain.astype(jnp.float32), 2.0), 1.0)
    return brain & (tissue > 0), jnp.clip(2.0 - 2.0 * inside, 0.0, 1.0)
