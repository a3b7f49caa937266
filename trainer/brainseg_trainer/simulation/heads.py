"""A head drawn from ingredients: anatomy, a tumour in it, images of both. A function of a key.

Every step takes what was drawn before it and the next part of the key; nothing is remembered. Each is
compiled by itself: of all in one, XLA makes code that computes the same fields again wherever they are
used, and takes almost twice as long.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from brainseg_trainer.simulation.anatomy import anatomy, grid, grown, stripped, tumours
from brainseg_trainer.simulation.fields import Array, chance, uniform
from brainseg_trainer.simulation.images import distracted, framed, looks, painted, scanned, with_absent
from brainseg_trainer.simulation.ingredients import TISSUES, Ingredients
from brainseg_trainer.simulation.pasting import pasted
from brainseg_trainer.simulation.setting import ED, Setting, Stock, stock_of

__all__ = ["Generator", "cut", "generator"]

Generator = Callable[[Array], tuple[Array, Array]]
"""Keys (N,) -> images (N, i, j, k, 4), z-scored, 0 where nothing was kept, and labels (N, i, j, k)."""


def generator(ingredients: Ingredients, shape: tuple[int, int, int], setting: Setting) -> Generator:
    """What draws heads on a grid of so many voxels of ``SPACING_MM``."""
    stock = stock_of(ingredients)

    def drawn(keys: Array) -> tuple[Array, Array]:
        images, labels = zip(*(_head(key, stock, shape, setting) for key in keys), strict=True)
        return jnp.stack(images), jnp.stack(labels)

    return drawn


def _head(key: Array, stock: Stock, shape: tuple[int, int, int], setting: Setting) -> tuple[Array, Array]:
    keys = jax.random.split(key, 12)
    points = grid(keys[0], shape)
    tumour, pushed = tumours(keys[1], points, stock, setting)
    tissue = anatomy(keys[2], pushed, stock, setting)
    tumour = grown(keys[11], tissue, tumour, points, setting)
    brain, edge = stripped(keys[3], tissue)
    tumour = jnp.where(brain, tumour, 0)
    # Oedema is no fluid: it stops at the ventricles.
    tumour = jnp.where((tumour == ED) & (tissue == TISSUES.index("ventricle")), 0, tumour)
    tumour, look = looks(keys[4], tumour, stock, setting)
    image = painted(keys[5], tissue, tumour, look, setting)
    image = distracted(keys[6], image, tissue, tumour, edge, points, setting)
    image = scanned(keys[7], image, brain, points, setting)
    image, tumour = pasted(keys[8], image, tumour, brain, points, stock, setting)
    image = with_absent(keys[9], framed(keys[10], image, brain, tissue, setting), setting)
    return jnp.moveaxis(image, 0, -1), tumour.astype(jnp.uint8)


@partial(jax.jit, static_argnames=("tile", "tumour"))
def cut(
    key: Array, image: Array, labels: Array, *, tile: tuple[int, int, int], tumour: float
) -> tuple[Array, Array]:
    """A tile (a, b, c) of an image (i, j, k, 4) and of its labels (i, j, k): (a, b, c, 4) and (a, b, c).

    Around a voxel of tumour in a share ``tumour`` of the cases; else, and where there is none, anywhere.
    """
    keys = jax.random.split(key, 4)
    size, room = jnp.array(tile), jnp.array([n - t for n, t in zip(labels.shape, tile, strict=True)])
    anywhere = jax.random.randint(keys[0], (3,), 0, room + 1)
    drawn = jnp.where(labels > 0, jax.random.uniform(keys[1], labels.shape), 0.0)
    voxel = jnp.stack(jnp.unravel_index(drawn.argmax(), labels.shape))
    around = voxel - size // 2 + jnp.round(size / 4 * uniform(keys[2], -1.0, 1.0, (3,))).astype(jnp.int32)
    wanted = (chance(keys[3], tumour) > 0) & (labels > 0).any()
    start = jnp.clip(jnp.where(wanted, around, anywhere), 0, room)
    return (
        jax.lax.dynamic_slice(image, (*start, 0), (*tile, image.shape[-1])),
        jax.lax.dynamic_slice(labels, start, tile),
    )
