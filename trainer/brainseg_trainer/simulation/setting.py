"""How widely heads are drawn, and what from: values that every part of a drawing is given."""

from typing import NamedTuple

import jax.numpy as jnp

from brainseg_trainer.simulation.fields import Array
from brainseg_trainer.simulation.ingredients import Ingredients

__all__ = ["ED", "ET", "FLAIR", "NCR", "OTHER", "T1", "T1C", "T2", "USUAL", "Setting", "Stock", "stock_of"]

NCR, ED, ET = 1, 2, 3
T1, T1C, T2, FLAIR = range(4)


class Setting(NamedTuple):
    """How widely heads are drawn; shares are of heads, 0 to 1."""

    tumour: float = 0.75
    """Share with a tumour."""
    second: float = 0.15
    """Share of those with another one."""
    grown: float = 0.12
    """Share with one that has no expert's shape, but grew."""
    warp_mm: float = 5.0
    """Largest deviation of the warp of anatomy."""
    wide: float = 0.5
    """Share whose contrast goes beyond what was measured."""
    jitter: float = 0.15
    """Deviation of every tissue's mean."""
    texture: float = 1.0
    """Largest factor on the measured texture."""
    shading: float = 0.7
    """Largest part by which coils shade the signal."""
    noise: float = 0.15
    """Largest deviation of white noise."""
    distractors: float = 0.65
    """Share that has each thing that is no tumour."""
    pasted: float = 0.4
    """Share into which crops of real lesions are pasted."""
    whole: float = 0.0
    """Share of heads whose skull nobody stripped."""
    absent: float = 0.1
    """Share of heads without T1, without T2, and again without both."""


USUAL = Setting()
OTHER = Setting(
    tumour=0.88,
    grown=0.3,
    wide=0.8,
    warp_mm=7.0,
    jitter=0.3,
    texture=1.4,
    shading=0.5,
    noise=0.3,
    distractors=0.8,
    pasted=0.0,
)
"""A setting that training never uses, to choose and to stop by."""


class Stock(NamedTuple):
    """Ingredients where the accelerator has them: fields and shapes of ``Ingredients``, ``Appearances``."""

    heads: Array
    tumours: Array
    centroids: Array
    radii: Array
    crops: Array
    crop_labels: Array
    crop_inside: Array
    crop_places: Array
    means: Array
    roots: Array
    known: Array
    enhancing: Array


def stock_of(ingredients: Ingredients) -> Stock:
    """Bring ingredients to the accelerator."""
    found = ingredients.appearances
    return Stock(
        *(jnp.asarray(getattr(ingredients, name)) for name in Stock._fields[:8]),
        *(jnp.asarray(getattr(found, name)) for name in Stock._fields[8:]),
    )
