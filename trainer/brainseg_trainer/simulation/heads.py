"""Heads drawn from ingredients: anatomy, a tumour in it, images of both. One compiled function of a key.

Every step takes what was drawn before it and the next part of the key; nothing is remembered.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from brainseg_trainer.simulation.fields import (
    Array,
    blurred,
    chance,
    choice,
    nearest,
    noise,
    rotation,
    uniform,
)
from brainseg_trainer.simulation.ingredients import CROP_STEP, HALF_MM, SPACING_MM, TISSUES, Ingredients

__all__ = ["OTHER", "USUAL", "Generator", "Setting", "generator"]

NCR, ED, ET = 1, 2, 3
T1, T1C, T2, FLAIR = range(4)
FLUID, GREY, WHITE, NECROSIS, OEDEMA, ENHANCING = range(6)
SIGNAL = 4.0
"""Mean of a brain's signal in deviations of its own, which a z-score no longer tells: 3 to 5."""


class Setting(NamedTuple):
    """How widely heads are drawn; shares are of heads, 0 to 1."""

    tumour: float = 0.88
    """Share with a tumour."""
    second: float = 0.15
    """Share of those with another one."""
    warp_mm: float = 5.0
    """Largest deviation of the warp of anatomy."""
    wide: float = 0.5
    """Share whose contrast goes beyond what was measured."""
    jitter: float = 0.15
    """Deviation of every tissue's mean."""
    texture: float = 1.0
    """Largest factor on the measured texture."""
    shading: float = 0.35
    """Largest part by which coils shade the signal."""
    noise: float = 0.25
    """Largest deviation of white noise."""
    distractors: float = 0.55
    """Share that has each thing that is no tumour."""
    pasted: float = 0.45
    """Share into which crops of real lesions are pasted."""
    absent: float = 0.15
    """Share of heads without T1, without T2, and again without both."""


USUAL = Setting()
OTHER = Setting(
    wide=0.8, warp_mm=7.0, jitter=0.3, texture=1.4, shading=0.5, noise=0.4, distractors=0.8, pasted=0.0
)
"""A setting that training never uses, to choose and to stop by."""


class _Stock(NamedTuple):
    """Ingredients where the accelerator has them."""

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


Generator = Callable[[Array], tuple[Array, Array]]
"""Keys (N,) -> images (N, i, j, k, 4), z-scored, 0 outside the brain, and labels (N, i, j, k)."""


def generator(ingredients: Ingredients, shape: tuple[int, int, int], setting: Setting) -> Generator:
    """A compiled function that draws heads on a grid of so many voxels of ``SPACING_MM``."""
    found = ingredients.appearances
    stock = _Stock(
        *(jnp.asarray(getattr(ingredients, name)) for name in _Stock._fields[:8]),
        *(jnp.asarray(getattr(found, name)) for name in _Stock._fields[8:]),
    )

    return lambda keys: _heads(keys, stock, shape, setting)


@partial(jax.jit, static_argnames="shape")
def _heads(keys: Array, stock: _Stock, shape: tuple[int, int, int], setting: Setting) -> tuple[Array, Array]:
    # One after the other: a batch of them would only take more memory.
    drawn: tuple[Array, Array] = jax.lax.map(lambda key: _head(key, stock, shape, setting), keys)
    return drawn


def _head(key: Array, stock: _Stock, shape: tuple[int, int, int], setting: Setting) -> tuple[Array, Array]:
    keys = jax.random.split(key, 10)
    points = _grid(keys[0], shape)
    tumour, pushed = _tumours(keys[1], points, stock, setting)
    tissue = _anatomy(keys[2], pushed, stock, setting)
    brain, edge = _stripped(keys[3], tissue)
    tumour = jnp.where(brain, tumour, 0)
    # Oedema is no fluid: it stops at the ventricles.
    tumour = jnp.where((tumour == ED) & (tissue == TISSUES.index("ventricle")), 0, tumour)
    tumour, look = _looks(keys[4], tumour, stock, setting)
    image = _painted(keys[5], tissue, tumour, look, setting)
    image = _distracted(keys[6], image, tissue, tumour, edge, points, look, setting)
    image = _scanned(keys[7], image, brain, points, setting)
    image, tumour = _pasted(keys[8], image, tumour, brain, points, stock, setting)
    return _with_absent(keys[9], image, setting), tumour.astype(jnp.uint8)


def _grid(key: Array, shape: tuple[int, int, int]) -> Array:
    """Where voxels lie (i, j, k, 3), in mm about the middle of the brain, which is not quite theirs."""
    axes = [(jnp.arange(n) - (n - 1) / 2) * mm for n, mm in zip(shape, SPACING_MM, strict=True)]
    return jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1) + uniform(key, -4.0, 4.0, (3,))


def _anatomy(key: Array, points: Array, stock: _Stock, setting: Setting) -> Array:
    """Tissue (i, j, k) of a head that is turned, stretched, bent and perhaps mirrored."""
    keys = jax.random.split(key, 9)
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


def _tumours(key: Array, points: Array, stock: _Stock, setting: Setting) -> tuple[Array, Array]:
    """Labels (i, j, k) of up to two tumours, and where the tissue that they pushed away would be."""
    keys = jax.random.split(key, 4)
    there = chance(keys[0], setting.tumour)
    labels, points = _tumour(keys[1], points, points, 0.0, stock, there)
    second, points = _tumour(keys[2], points, points, -0.5, stock, there * chance(keys[3], setting.second))
    return jnp.where(labels > 0, labels, second), points


def _tumour(
    key: Array, points: Array, tissue: Array, smaller: float, stock: _Stock, there: Array
) -> tuple[Array, Array]:
    """An expert's labels, turned, scaled, bent, near where they were; and ``tissue`` pushed outwards."""
    keys = jax.random.split(key, 9)
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
    first = jnp.array([240 - 118.5, 240 - 130.5, 73.0])
    labels = nearest(stock.tumours[n], (where + first) / jnp.array(SPACING_MM) - 0.5)
    radius = scale * stock.radii[n]
    distance = jnp.linalg.norm(away, axis=-1, keepdims=True)
    push = uniform(keys[7], 0.0, 0.35) * radius * jnp.exp(-jnp.square(distance / (1.6 * radius)))
    moved = tissue - there * push * away / (distance + 1.0)
    return (labels * there.astype(labels.dtype)).astype(jnp.int32), moved


def _stripped(key: Array, tissue: Array) -> tuple[Array, Array]:
    """What a skull strip keeps (i, j, k), and how near its edge a voxel is: 1 there, 0 deep inside."""
    keys = jax.random.split(key, 3)
    inner = (tissue > TISSUES.index("fluid")) & (tissue < TISSUES.index("surroundings"))
    # Grown over the sulci, then taken back by more or less.
    grown = blurred(inner.astype(jnp.float32), 2.0) > 0.15
    ragged = 0.08 * noise(keys[0], tissue.shape, 25.0, SPACING_MM)
    brain = blurred(grown.astype(jnp.float32), 2.0) + ragged > uniform(keys[1], 0.5, 0.85)
    inside = blurred(blurred(brain.astype(jnp.float32), 2.0), 1.0)
    return brain & (tissue > 0), jnp.clip(2.0 - 2.0 * inside, 0.0, 1.0)


class _Look(NamedTuple):
    """What things look like: of the six ``PARTS`` mean (6, 4) and root of the covariance (6, 4, 4)."""

    means: Array
    roots: Array


def _looks(key: Array, tumour: Array, stock: _Stock, setting: Setting) -> tuple[Array, _Look]:
    """Appearances of one crop, what it does not show from others; and labels that agree with them."""
    keys = jax.random.split(key, 14)
    own = choice(keys[0], stock.known[:, GREY])
    dull = chance(keys[1], 0.12)
    cystic = chance(keys[2], 0.12)

    def donor(key: Array, part: int, allowed: Array) -> Array:
        allowed = allowed & stock.known[:, part] & stock.known[:, WHITE]
        return jnp.where(allowed[own], own, choice(key, allowed))

    anyone = jnp.ones_like(stock.enhancing)
    donors = [
        own,
        own,
        own,
        donor(keys[3], NECROSIS, jnp.where(dull > 0, ~stock.enhancing, anyone)),
        donor(keys[4], OEDEMA, anyone),
        donor(keys[5], ENHANCING, stock.enhancing),
    ]
    healthy = stock.means[own, :3]
    # A lesion is carried over as what it is beside white matter.
    offsets = jnp.stack(
        [stock.means[d, p] - stock.means[d, WHITE] for p, d in enumerate(donors) if p >= NECROSIS]
    )
    free = jnp.stack([uniform(k, -1.6, 1.6, (4,)) for k in jax.random.split(keys[6], 3)])
    wide = chance(keys[7], setting.wide)
    healthy = jnp.where(wide * chance(keys[8], 0.3) > 0, free, healthy)
    lesions = healthy[2] + offsets
    means = jnp.concatenate([healthy, lesions])
    # A cavity is fluid, also on FLAIR.
    cavity = jnp.where(jnp.arange(4) == FLAIR, healthy[0], means[NECROSIS])
    means = means.at[NECROSIS].set(jnp.where(cystic * (1 - dull) > 0, cavity, means[NECROSIS]))
    gain = jnp.where(wide > 0, jnp.exp(uniform(keys[9], -0.4, 0.4, (4,))), 1.0)
    means = means * gain + setting.jitter * jax.random.normal(keys[10], means.shape)
    means = means + wide * uniform(keys[11], -0.3, 0.3, (4,))
    roots = jnp.stack([stock.roots[d, p] for p, d in enumerate(donors)])
    roots = roots * uniform(keys[12], 0.3, setting.texture, (6, 1, 1))
    tumour = jnp.where((dull > 0) & (tumour == ET), NCR, tumour)
    return tumour, _Look(means, roots)


def _painted(key: Array, tissue: Array, tumour: Array, look: _Look, setting: Setting) -> Array:
    """An image (i, j, k, 4) of anatomy with a tumour, its oedema a veil over it."""
    keys = jax.random.split(key, 8)
    shape = tissue.shape
    fluid, grey, white = look.means[FLUID], look.means[GREY], look.means[WHITE]
    mixed = jnp.stack(
        [
            fluid,  # outside
            0.8 * fluid + 0.2 * grey,
            fluid,  # ventricle
            grey,
            white,
            grey,  # cerebellar
            0.75 * white + 0.25 * grey,
            0.7 * grey + 0.3 * white,  # striatum
            0.5 * grey + 0.5 * white,  # thalamus
            0.4 * grey + 0.6 * white - jnp.array([0.0, 0, 0.4, 0.3]),  # pallidum
            grey + jnp.array([0.0, 0, 0.1, 0.25]),  # hippocampus
            0.3 * grey + 0.7 * white,  # stem
            0.5 * fluid + 0.5 * grey,  # surroundings
        ]
    )
    mixed = mixed + setting.jitter * jax.random.normal(keys[0], mixed.shape)
    image = blurred(mixed[tissue.astype(jnp.int32)], uniform(keys[1], 0.3, 0.75))
    # Grey and white matter vary from place to place.
    slow = jnp.stack([noise(k, shape, 60.0, SPACING_MM) for k in jax.random.split(keys[2], 4)], axis=-1)
    image = image + uniform(keys[3], 0.0, 0.2, (4,)) * slow

    veil = blurred((tumour > 0).astype(jnp.float32), uniform(keys[4], 0.3, 1.1))
    dense = jnp.clip(uniform(keys[5], 0.65, 1.0) + 0.2 * noise(keys[6], shape, 25.0, SPACING_MM), 0.35, 1.0)
    image = _over(image, look.means[OEDEMA], veil * dense)
    for part, label in ((NECROSIS, NCR), (ENHANCING, ET)):
        image = _over(image, look.means[part], blurred((tumour == label).astype(jnp.float32), 0.45))
    return image + _texture(keys[7], tissue, tumour, look)


def _texture(key: Array, tissue: Array, tumour: Array, look: _Look) -> Array:
    """Noise (i, j, k, 4) with each part's own covariance, fine and coarse."""
    keys = jax.random.split(key, 3)
    shape = (*tissue.shape, 4)
    fine = blurred(jax.random.normal(keys[0], shape), 0.6)
    coarse = jnp.stack([noise(k, shape[:3], 14.0, SPACING_MM) for k in jax.random.split(keys[1], 4)], axis=-1)
    share = uniform(keys[2], 0.2, 0.8)
    grain = jnp.sqrt(share) * coarse + jnp.sqrt(1 - share) * fine / (fine.std() + 1e-6)
    fluid = (tissue <= TISSUES.index("ventricle")) | (tissue == TISSUES.index("surroundings"))
    pale = (tissue == TISSUES.index("white")) | (tissue == TISSUES.index("stem"))
    part = jnp.where(fluid, FLUID, jnp.where(pale, WHITE, GREY))
    for label, value in ((NCR, NECROSIS), (ED, OEDEMA), (ET, ENHANCING)):
        part = jnp.where(tumour == label, value, part)
    # Measured inside a crop, healthy tissues' spread holds partial volume, which is painted already.
    calm = jnp.array([0.5, 0.5, 0.5, 1.0, 0.8, 1.0])[:, None, None]
    roots = (look.roots * calm)[part]
    return jnp.einsum("...ab,...b->...a", roots, grain)


def _over(image: Array, colour: Array, cover: Array) -> Array:
    return image + cover[..., None] * (colour - image)


def _distracted(
    key: Array,
    image: Array,
    tissue: Array,
    tumour: Array,
    edge: Array,
    points: Array,
    look: _Look,
    setting: Setting,
) -> Array:
    """What is bright or dark and no tumour: age, vessels, dura, sinus, plexus, a hazy white matter."""
    keys = jax.random.split(key, 24)
    shape = tissue.shape
    often = [chance(k, setting.distractors) for k in keys[:7]]
    free = blurred((tumour == 0).astype(jnp.float32), 0.7)
    white = (tissue == TISSUES.index("white")).astype(jnp.float32)
    ventricle = (tissue == TISSUES.index("ventricle")).astype(jnp.float32)
    beside = blurred(blurred(ventricle, 2.0), 2.0)

    spots = jax.nn.sigmoid(6.0 * (noise(keys[7], shape, 13.0, SPACING_MM) - uniform(keys[8], 1.2, 2.2)))
    aged = jnp.array([-0.4, -0.4, 1.2, 1.8]) * uniform(keys[9], 0.4, 1.3)
    spots = spots * white * jnp.clip(0.25 + 4.0 * beside, 0.0, 1.0) * free
    image = image + (often[0] * blurred(spots, 0.5))[..., None] * aged

    caps = jnp.clip(3.0 * beside, 0.0, 1.0) * white * free
    image = image + (often[1] * caps * uniform(keys[10], 0.2, 1.6))[..., None] * jnp.array(
        [-0.2, -0.2, 0.6, 1.0]
    )
    haze = jax.nn.sigmoid(2.0 * noise(keys[11], shape, 45.0, SPACING_MM)) * white * free
    image = image + (often[2] * haze * uniform(keys[12], 0.0, 0.8))[..., None] * jnp.array([0.0, 0, 0.5, 0.8])

    sheets = [jnp.square(noise(k, shape, 28.0, SPACING_MM)) for k in jax.random.split(keys[13], 2)]
    tubes = jnp.exp(-(sheets[0] + sheets[1]) / uniform(keys[14], 0.01, 0.03)) * free
    blood = jnp.array([0.0, 3.0, -1.0, -0.5]) * uniform(keys[15], 0.3, 1.3)
    image = image + (often[3] * blurred(tubes, 0.5))[..., None] * blood

    patchy = jax.nn.sigmoid(3.0 * noise(keys[16], shape, 50.0, SPACING_MM))
    band = jnp.clip((edge - 0.75) * 4.0, 0.0, 1.0) * free
    dura = jnp.array([0.0, 1.0, 0.0, 0.3]) * uniform(keys[17], 0.3, 2.5)
    image = image + (often[4] * band * patchy)[..., None] * dura

    x, y, z = jnp.moveaxis(points, -1, 0)
    above = jax.nn.sigmoid(z / 8.0) + jax.nn.sigmoid((-y - 40.0) / 8.0)
    sinus = jnp.exp(-jnp.square(x / uniform(keys[18], 3.0, 6.0))) * jnp.clip((edge - 0.5) * 3.0, 0, 1)
    bright = jnp.array([0.5, 3.0, -0.5, 0.5]) * uniform(keys[19], 0.3, 1.3)
    image = image + (often[5] * sinus * jnp.clip(above, 0, 1) * free)[..., None] * bright

    lumps = jax.nn.sigmoid(8.0 * (noise(keys[20], shape, 12.0, SPACING_MM) - 0.8)) * ventricle * free
    plexus = jnp.array([0.8, 2.5, -0.8, 0.8]) * uniform(keys[21], 0.3, 1.2)
    image = image + (often[6] * blurred(lumps, 0.5))[..., None] * plexus
    # Cortex is brighter on FLAIR here than there, most of all behind.
    cortex = (tissue == TISSUES.index("cortex")) | (tissue == TISSUES.index("cerebellar_grey"))
    behind = jax.nn.sigmoid(-y / 15.0) * uniform(keys[22], 0.0, 1.2)
    place = jax.nn.sigmoid(2.0 * noise(keys[23], shape, 60.0, SPACING_MM)) * behind
    return image + (cortex * place * free)[..., None] * jnp.array([0.0, 0.0, 0.2, 1.0])


def _scanned(key: Array, image: Array, brain: Array, points: Array, setting: Setting) -> Array:
    """Coils, resolution, noise and the scanner's own scale; then z-scored over the brain, 0 outside."""
    keys = jax.random.split(key, 10)
    shape = brain.shape
    lean = points @ (jax.random.normal(keys[0], (3, 4)) / 90.0)
    rim = jnp.square(points / jnp.array([70.0, 88.0, 70.0])).sum(axis=-1, keepdims=True) - 0.5
    slow = jnp.stack([noise(k, shape, 120.0, SPACING_MM) for k in jax.random.split(keys[1], 4)], axis=-1)
    shade = 0.4 * lean + 0.4 * slow + 0.5 * uniform(keys[2], -0.3, 1.0) * rim
    shade = jnp.exp(jnp.log1p(setting.shading) * uniform(keys[3], 0.0, 1.0, (4,)) * shade)
    image = (image + SIGNAL) * shade
    # Thick slices, along any axis and on any of the images.
    thick = (
        chance(keys[4], 0.25)
        * uniform(keys[5], 0.5, 1.8)
        * jax.nn.one_hot(jax.random.randint(keys[6], (), 0, 3), 3)
    )
    which = chance(keys[7], 0.6, (4,))
    image = image + which * (blurred(image, thick) - image)
    image = image + uniform(keys[8], 0.0, setting.noise, (4,)) * jax.random.normal(keys[9], image.shape)
    gamma = jnp.exp(uniform(keys[0], -0.25, 0.25, (4,)))
    image = jnp.power(jnp.maximum(image, 0.05) / SIGNAL, gamma)
    inside = brain[..., None].astype(jnp.float32)
    count = inside.sum() + 1.0
    mean = (image * inside).sum(axis=(0, 1, 2)) / count
    spread = jnp.sqrt((jnp.square(image - mean) * inside).sum(axis=(0, 1, 2)) / count)
    return (image - mean) / (spread + 1e-6) * inside


SLOTS = 4
"""Crops that are pasted into a head at most."""


def _pasted(
    key: Array,
    image: Array,
    tumour: Array,
    brain: Array,
    points: Array,
    stock: _Stock,
    setting: Setting,
) -> tuple[Array, Array]:
    """Crops of real lesions where they were, their rims fading into the head."""
    keys = jax.random.split(key, SLOTS + 1)
    wanted = chance(keys[0], setting.pasted)
    first = points[0, 0, 0]
    for slot in keys[1:]:
        image, tumour = _paste(slot, image, tumour, brain, first, stock, wanted)
    return image, tumour


def _paste(
    key: Array, image: Array, tumour: Array, brain: Array, first: Array, stock: _Stock, wanted: Array
) -> tuple[Array, Array]:
    keys = jax.random.split(key, 7)
    edge = stock.crop_labels.shape[1]
    n = jax.random.randint(keys[0], (), 0, stock.crops.shape[0])
    flip = chance(keys[1], 0.5) > 0
    mirror = jnp.where(flip, jnp.array([-1.0, 1, 1]), 1.0)
    place = stock.crop_places[n] * mirror + 8.0 * jax.random.normal(keys[2], (3,))
    start = jnp.round((place - first) / jnp.array(SPACING_MM) - edge / 2).astype(jnp.int32)
    start = jnp.clip(start, 0, jnp.array(brain.shape) - edge)

    def mirrored(part: Array) -> Array:
        return jnp.where(flip, part[::-1], part)

    crop = mirrored(stock.crops[n].astype(jnp.float32) * CROP_STEP)
    crop = crop * jnp.exp(uniform(keys[3], -0.15, 0.15, (4,))) + uniform(keys[4], -0.15, 0.15, (4,))
    labels = mirrored(stock.crop_labels[n]).astype(jnp.int32)
    inside = mirrored(stock.crop_inside[n]).astype(jnp.float32)
    below = jax.lax.dynamic_slice(brain, start, (edge,) * 3).astype(jnp.float32)
    # Fades over the four voxels that a crop has around its lesion.
    ramp = jnp.clip((jnp.minimum(jnp.arange(edge), jnp.arange(edge)[::-1]) + 0.5) / 4.0, 0.0, 1.0)
    fade = ramp[:, None, None] * ramp[None, :, None] * ramp[None, None, :]
    cover = wanted * chance(keys[5], 0.75) * fade * below * inside
    before = jax.lax.dynamic_slice(image, (*start, 0), (edge, edge, edge, 4))
    image = jax.lax.dynamic_update_slice(
        image, before + cover[..., None] * (crop - before), (*start, jnp.int32(0))
    )
    known = jax.lax.dynamic_slice(tumour, start, (edge,) * 3)
    return image, jax.lax.dynamic_update_slice(tumour, jnp.where(cover > 0.5, labels, known), start)


def _with_absent(key: Array, image: Array, setting: Setting) -> Array:
    """T1 or T2 or both are 0 where they were not scanned."""
    keys = jax.random.split(key, 2)
    gone = jnp.maximum(chance(keys[0], setting.absent, (2,)), chance(keys[1], setting.absent))
    return image * (1.0 - gone[0] * jax.nn.one_hot(T1, 4)) * (1.0 - gone[1] * jax.nn.one_hot(T2, 4))
