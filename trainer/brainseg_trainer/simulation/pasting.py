"""Real lesions in a simulated head: crops where they were, their rims fading into it."""

from functools import partial

import jax
import jax.numpy as jnp

from brainseg_trainer.simulation.fields import Array, chance, compiled, uniform
from brainseg_trainer.simulation.ingredients import CROP_STEP, SPACING_MM
from brainseg_trainer.simulation.setting import Setting, Stock

__all__ = ["pasted"]

SLOTS = 4
"""Crops that are pasted into a head at most."""


@compiled
def pasted(
    key: Array,
    image: Array,
    tumour: Array,
    brain: Array,
    points: Array,
    stock: Stock,
    setting: Setting,
) -> tuple[Array, Array]:
    """An image (4, i, j, k) and labels (i, j, k) with crops of real lesions where they were."""
    keys = jax.random.split(key, SLOTS + 1)
    wanted = chance(keys[0], setting.pasted)
    first = points[0, 0, 0]
    for slot in keys[1:]:
        image, tumour = _paste(slot, image, tumour, brain, first, stock, wanted)
    return image, tumour


def _paste(
    key: Array, image: Array, tumour: Array, brain: Array, first: Array, stock: Stock, wanted: Array
) -> tuple[Array, Array]:
    keys = jax.random.split(key, 7)
    edge = stock.crop_labels.shape[1]
    n = jax.random.randint(keys[0], (), 0, stock.crops.shape[0])
    flip = chance(keys[1], 0.5) > 0
    mirror = jnp.where(flip, jnp.array([-1.0, 1, 1]), 1.0)
    place = stock.crop_places[n] * mirror + 8.0 * jax.random.normal(keys[2], (3,))
    start = jnp.round((place - first) / jnp.array(SPACING_MM) - edge / 2).astype(jnp.int32)
    start = jnp.clip(start, 0, jnp.array(brain.shape) - edge)

    # Voxels are as long along i as along j: a quarter turn needs no interpolation, and makes four of a crop.
    turns = [partial(jnp.rot90, k=k) for k in range(4)]
    turn = jax.random.randint(keys[6], (), 0, 4)

    def turned(part: Array) -> Array:
        return jax.lax.switch(turn, turns, jnp.where(flip, part[::-1], part))

    crop = turned(stock.crops[n].astype(jnp.float32) * CROP_STEP)
    crop = crop * jnp.exp(uniform(keys[3], -0.15, 0.15, (4,))) + uniform(keys[4], -0.15, 0.15, (4,))
    crop = jnp.moveaxis(crop, -1, 0)
    labels = turned(stock.crop_labels[n]).astype(jnp.int32)
    inside = turned(stock.crop_inside[n]).astype(jnp.float32)
    below = jax.lax.dynamic_slice(brain, start, (edge,) * 3).astype(jnp.float32)
    # Fades over the four voxels that a crop has around its lesion.
    ramp = jnp.clip((jnp.minimum(jnp.arange(edge), jnp.arange(edge)[::-1]) + 0.5) / 4.0, 0.0, 1.0)
    fade = ramp[:, None, None] * ramp[None, :, None] * ramp[None, None, :]
    cover = wanted * chance(keys[5], 0.75) * fade * below * inside
    corner = (jnp.int32(0), *start)
    before = jax.lax.dynamic_slice(image, corner, (4, edge, edge, edge))
    image = jax.lax.dynamic_update_slice(image, before + cover * (crop - before), corner)
    known = jax.lax.dynamic_slice(tumour, start, (edge,) * 3)
    return image, jax.lax.dynamic_update_slice(tumour, jnp.where(cover > 0.5, labels, known), start)
