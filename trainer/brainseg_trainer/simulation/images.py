"""What things look like: tissues and tumours on four images, what is bright and no tumour, the scanner.

Images lie channels first here (4, i, j, k), which a CPU computes faster.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from brainseg_trainer.simulation.appearance import PARTS
from brainseg_trainer.simulation.fields import Array, blurred, chance, choice, compiled, noise, uniform
from brainseg_trainer.simulation.ingredients import SPACING_MM, TISSUES
from brainseg_trainer.simulation.setting import ED, ET, FLAIR, NCR, T1, T2, Setting, Stock

__all__ = ["Look", "distracted", "framed", "looks", "painted", "scanned", "with_absent"]

FLUID, GREY, WHITE, NECROSIS, OEDEMA, ENHANCING = range(len(PARTS))
SIGNAL = jnp.array([3.2, 4.0, 2.4, 3.4])
"""Mean of a brain's signal in deviations of its own, which a z-score no longer tells: no voxel lies lower.

Measured on real heads: T1 2.3 to 3.7, T1c 2.4 to 5.5, T2 2.0 to 2.8, FLAIR 2.9 to 3.8.
"""


class Look(NamedTuple):
    """What things look like: of the six ``PARTS`` mean (6, 4) and root of the covariance (6, 4, 4)."""

    means: Array
    roots: Array


@compiled
def looks(key: Array, tumour: Array, stock: Stock, setting: Setting) -> tuple[Array, Look]:
    """Appearances of one crop, what it does not show from others; and labels that agree with them."""
    keys = jax.random.split(key, 14)
    own = choice(keys[0], stock.known[:, GREY])
    dull = chance(keys[1], 0.25)
    cystic = chance(keys[2], 0.3)

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
    # What little fluid a crop shows is mixed with grey matter: whole real heads hold a darker one on T1,
    # T1c and FLAIR and a brighter one on T2.
    pure = healthy[FLUID] + uniform(keys[13], 0.2, 1.0) * (healthy[FLUID] - healthy[GREY])
    healthy = healthy.at[FLUID].set(pure)
    lesions = healthy[WHITE] + offsets
    means = jnp.concatenate([healthy, lesions])
    # A cavity is fluid, also on FLAIR.
    cavity = jnp.where(jnp.arange(4) == FLAIR, healthy[0], means[NECROSIS])
    means = means.at[NECROSIS].set(jnp.where(cystic * (1 - dull) > 0, cavity, means[NECROSIS]))
    gain = jnp.where(wide > 0, jnp.exp(uniform(keys[9], -0.4, 0.4, (4,))), 1.0)
    means = means * gain + setting.jitter * jax.random.normal(keys[10], means.shape)
    means = means + wide * uniform(keys[11], -0.3, 0.3, (4,))
    roots = jnp.stack([stock.roots[d, p] for p, d in enumerate(donors)])
    roots = roots * uniform(keys[12], 0.15, setting.texture, (6, 1, 1))
    tumour = jnp.where((dull > 0) & (tumour == ET), NCR, tumour)
    return tumour, Look(means, roots)


@compiled
def painted(key: Array, tissue: Array, tumour: Array, look: Look, setting: Setting) -> Array:
    """An image (4, i, j, k) of anatomy with a tumour, its oedema a veil over it."""
    keys = jax.random.split(key, 8)
    shape = tissue.shape
    colours = _colours(keys[0], look, setting)
    image = blurred(colours.T[:, tissue.astype(jnp.int32)], uniform(keys[1], 0.3, 0.75), reach=2)
    # Grey and white matter vary from place to place.
    slow = jnp.stack([noise(k, shape, 60.0, SPACING_MM) for k in jax.random.split(keys[2], 4)])
    image = image + _each(uniform(keys[3], 0.0, 0.2, (4,))) * slow

    veil = blurred((tumour > 0).astype(jnp.float32), uniform(keys[4], 0.3, 1.1), reach=3)
    dense = jnp.clip(uniform(keys[5], 0.75, 1.0) + 0.2 * noise(keys[6], shape, 25.0, SPACING_MM), 0.4, 1.0)
    image = _over(image, look.means[OEDEMA], veil * dense)
    for part, label in ((NECROSIS, NCR), (ENHANCING, ET)):
        cover = blurred((tumour == label).astype(jnp.float32), 0.45, reach=2)
        image = _over(image, look.means[part], cover)
    return image + _texture(keys[7], tissue, tumour, look)


def _colours(key: Array, look: Look, setting: Setting) -> Array:
    """Mean of every tissue on every image (tissue, 4)."""
    keys = jax.random.split(key, 8)
    fluid, grey, white = look.means[FLUID], look.means[GREY], look.means[WHITE]
    dark = 0.2 - SIGNAL
    colours = {
        "outside": dark,
        "fluid": 0.8 * fluid + 0.2 * grey,
        "ventricle": fluid,
        "cortex": grey,
        "white": white,
        "cerebellar_grey": grey,
        "cerebellar_white": 0.75 * white + 0.25 * grey,
        "striatum": 0.7 * grey + 0.3 * white,
        "thalamus": 0.5 * grey + 0.5 * white,
        "pallidum": 0.4 * grey + 0.6 * white - jnp.array([0.0, 0, 0.4, 0.3]),
        # Limbic grey matter is brighter on FLAIR than other cortex, in some heads by far.
        "hippocampus": grey + uniform(keys[7], 0.0, 1.0) * jnp.array([0.0, 0, 0.3, 0.9]),
        "stem": 0.3 * grey + 0.7 * white,
        "surroundings": 0.5 * fluid + 0.5 * grey,
        # Fat or muscle, suppressed or not: anything between dark and much brighter than the brain.
        "soft": uniform(keys[1], -2.5, 2.5, (4,)),
        "skin": uniform(keys[2], -1.5, 4.0, (4,)),
        "bone": dark + uniform(keys[3], 0.0, 1.5, (4,)),
        "marrow": uniform(keys[4], -3.0, 3.0, (4,)),
        "eye": fluid,
        "vein": jnp.array([-1.0, 2.0, -1.5, -1.0]) + uniform(keys[5], -1.5, 1.5, (4,)),
    }
    mixed = jnp.stack([colours[tissue] for tissue in TISSUES])
    return mixed + setting.jitter * jax.random.normal(keys[6], mixed.shape)


@compiled
def _texture(key: Array, tissue: Array, tumour: Array, look: Look) -> Array:
    """Noise (4, i, j, k) with each part's own covariance, fine and coarse."""
    keys = jax.random.split(key, 3)
    shape = tissue.shape
    fine = blurred(jax.random.normal(keys[0], (4, *shape)), 0.75, reach=2)
    coarse = jnp.stack([noise(k, shape, 14.0, SPACING_MM) for k in jax.random.split(keys[1], 4)])
    share = uniform(keys[2], 0.2, 0.8)
    grain = jnp.sqrt(share) * coarse + jnp.sqrt(1 - share) * fine / (fine.std() + 1e-6)
    fluid = (tissue <= TISSUES.index("ventricle")) | (tissue >= TISSUES.index("surroundings"))
    pale = (tissue == TISSUES.index("white")) | (tissue == TISSUES.index("stem"))
    part = jnp.where(fluid, FLUID, jnp.where(pale, WHITE, GREY))
    for label, value in ((NCR, NECROSIS), (ED, OEDEMA), (ET, ENHANCING)):
        part = jnp.where(tumour == label, value, part)
    # Measured inside a crop, healthy tissues' spread holds partial volume, which is painted already.
    roots = look.roots * jnp.array([0.5, 0.5, 0.5, 1.0, 0.8, 1.0])[:, None, None]
    # Number by number: a gather of whole matrices takes ten times as long.
    here = [part == n for n in range(len(PARTS))]

    def weight(a: int, b: int) -> Array:
        return sum(jnp.where(there, roots[n, a, b], 0.0) for n, there in enumerate(here))

    return jnp.stack([sum(weight(a, b) * grain[b] for b in range(a + 1)) for a in range(4)])


def _each(values: Array) -> Array:
    """One number for each image, (4,) -> (4, 1, 1, 1)."""
    return values[:, None, None, None]


def _over(image: Array, colour: Array, cover: Array) -> Array:
    return image + cover * (_each(colour) - image)


@compiled
def distracted(
    key: Array,
    image: Array,
    tissue: Array,
    tumour: Array,
    edge: Array,
    points: Array,
    setting: Setting,
) -> Array:
    """An image (4, i, j, k) with what is no tumour: age, vessels, dura, sinus, plexus, bright cortex."""
    keys = jax.random.split(key, 27)
    shape = tissue.shape
    often = [chance(k, setting.distractors) for k in keys[:7]]
    free = blurred((tumour == 0).astype(jnp.float32), 0.7, reach=2)
    white = (tissue == TISSUES.index("white")).astype(jnp.float32)
    ventricle = (tissue == TISSUES.index("ventricle")).astype(jnp.float32)
    beside = blurred(blurred(ventricle, 2.0), 2.0)

    def added(amount: Array, colour: Array) -> Array:
        return amount * _each(colour)

    spots = jax.nn.sigmoid(6.0 * (noise(keys[7], shape, 13.0, SPACING_MM) - uniform(keys[8], 1.2, 2.2)))
    aged = jnp.array([-0.4, -0.4, 1.2, 1.8]) * uniform(keys[9], 0.4, 1.3)
    spots = spots * white * jnp.clip(0.25 + 4.0 * beside, 0.0, 1.0) * free
    image = image + added(often[0] * blurred(spots, 0.5, reach=2), aged)

    caps = jnp.clip(3.0 * beside, 0.0, 1.0) * white * free
    rim = jnp.array([-0.2, -0.2, 0.6, 1.0])
    image = image + added(often[1] * caps * uniform(keys[10], 0.2, 1.6), rim)
    haze = jax.nn.sigmoid(2.0 * noise(keys[11], shape, 45.0, SPACING_MM)) * white * free
    image = image + added(often[2] * haze * uniform(keys[12], 0.0, 0.8), jnp.array([0.0, 0, 0.5, 0.8]))

    sheets = [jnp.square(noise(k, shape, 28.0, SPACING_MM)) for k in jax.random.split(keys[13], 2)]
    tubes = jnp.exp(-(sheets[0] + sheets[1]) / uniform(keys[14], 0.01, 0.03)) * free
    blood = jnp.array([0.0, 3.0, -1.0, -0.5]) * uniform(keys[15], 0.3, 1.3)
    image = image + added(often[3] * blurred(tubes, 0.5, reach=2), blood)

    patchy = jax.nn.sigmoid(3.0 * noise(keys[16], shape, 50.0, SPACING_MM))
    band = jnp.clip((edge - 0.75) * 4.0, 0.0, 1.0) * free
    dura = jnp.array([0.0, 1.0, 0.0, 0.3]) * uniform(keys[17], 0.3, 2.5)
    image = image + added(often[4] * band * patchy, dura)

    x, y, z = jnp.moveaxis(points, -1, 0)
    above = jax.nn.sigmoid(z / 8.0) + jax.nn.sigmoid((-y - 40.0) / 8.0)
    sinus = jnp.exp(-jnp.square(x / uniform(keys[18], 3.0, 6.0))) * jnp.clip((edge - 0.5) * 3.0, 0, 1)
    sinus = sinus * jnp.clip(above, 0, 1)
    # The transverse ones lie around the cerebellum, where its tent is fixed.
    level = jnp.square((z - uniform(keys[24], -52.0, -22.0)) / uniform(keys[25], 3.0, 7.0))
    sinus = jnp.maximum(
        sinus, jnp.exp(-level) * jax.nn.sigmoid((-y - 25.0) / 8.0) * jnp.clip((edge - 0.5) * 3.0, 0, 1)
    )
    bright = jnp.array([0.5, 3.0, -0.5, 0.5]) * uniform(keys[19], 0.3, 1.3)
    image = image + added(often[5] * sinus * free, bright)

    lumps = jax.nn.sigmoid(8.0 * (noise(keys[20], shape, 12.0, SPACING_MM) - 0.8)) * ventricle * free
    plexus = jnp.array([0.8, 2.5, -0.8, 0.8]) * uniform(keys[21], 0.3, 1.2)
    image = image + added(often[6] * blurred(lumps, 0.5, reach=2), plexus)
    # Cortex is brighter on FLAIR here than there, most of all behind.
    cortex = (tissue == TISSUES.index("cortex")) | (tissue == TISSUES.index("cerebellar_grey"))
    behind = jax.nn.sigmoid(-y / 15.0) * uniform(keys[22], 0.0, 1.2) + uniform(keys[26], 0.0, 0.5)
    place = jax.nn.sigmoid(2.0 * noise(keys[23], shape, 60.0, SPACING_MM)) * behind
    return image + added(cortex * place * free, jnp.array([0.0, 0.0, 0.2, 1.0]))


@compiled
def scanned(key: Array, image: Array, brain: Array, points: Array, setting: Setting) -> Array:
    """An image (4, i, j, k) after coils, resolution, noise and scale; z-scored over the brain."""
    keys = jax.random.split(key, 9)
    shape = brain.shape
    x = jnp.moveaxis(points, -1, 0)
    lean = jnp.tensordot(jax.random.normal(keys[0], (4, 3)) / 90.0, x, 1)
    rim = jnp.square(points / jnp.array([70.0, 88.0, 70.0])).sum(axis=-1) - 0.5
    slow = jnp.stack([noise(k, shape, 120.0, SPACING_MM) for k in jax.random.split(keys[1], 4)])
    shade = 0.4 * lean + 0.4 * slow + 0.5 * uniform(keys[2], -0.3, 1.0) * rim
    shade = jnp.exp(_each(jnp.log1p(setting.shading) * uniform(keys[3], 0.0, 1.0, (4,))) * shade)
    image = (image + _each(SIGNAL)) * shade
    which = _each(chance(keys[4], 0.6, (4,)))
    image = image + which * (_thickened(keys[5], image) - image)
    grain = jax.random.normal(keys[6], image.shape, jnp.float16).astype(jnp.float32)
    image = image + _each(uniform(keys[7], 0.0, setting.noise, (4,))) * grain
    gamma = jnp.exp(uniform(keys[8], -0.25, 0.25, (4,)))
    return _z_scored(jnp.power(jnp.maximum(image, 0.05) / _each(SIGNAL), _each(gamma)), brain)


def _thickened(key: Array, image: Array) -> Array:
    """Thick slices along one of the axes, in half of the heads."""
    keys = jax.random.split(key, 3)
    sigma = uniform(keys[1], 0.5, 1.8)
    ways = [partial(blurred, sigma=sigma, axes=axes) for axes in ((), (-3,), (-2,), (-1,))]
    which = chance(keys[0], 0.5) * jax.random.randint(keys[2], (), 1, 4)
    return jax.lax.switch(which.astype(jnp.int32), ways, image)


def _z_scored(image: Array, mask: Array) -> Array:
    inside = mask.astype(jnp.float32)
    count = inside.sum() + 1.0
    mean = _each((image * inside).sum(axis=(1, 2, 3)) / count)
    spread = jnp.sqrt((jnp.square(image - mean) * inside).sum(axis=(1, 2, 3)) / count)
    return (image - mean) / (_each(spread) + 1e-6)


@compiled
def framed(key: Array, image: Array, brain: Array, tissue: Array, setting: Setting) -> Array:
    """What of an image (4, i, j, k) is left, z-scored: the brain alone, or all, with the air or without.

    The rest is 0.
    """
    keys = jax.random.split(key)
    bare = chance(keys[0], setting.whole) == 0
    airy = chance(keys[1], 0.5) > 0
    kept = jnp.where(bare, brain, airy | (tissue > TISSUES.index("outside")) | brain)
    return _z_scored(image, kept) * kept


@compiled
def with_absent(key: Array, image: Array, setting: Setting) -> Array:
    """An image (4, i, j, k) in which T1 or T2 or both are 0, as if they were not scanned."""
    keys = jax.random.split(key, 2)
    gone = jnp.maximum(chance(keys[0], setting.absent, (2,)), chance(keys[1], setting.absent))
    return image * _each((1.0 - gone[0] * jax.nn.one_hot(T1, 4)) * (1.0 - gone[1] * jax.nn.one_hot(T2, 4)))
