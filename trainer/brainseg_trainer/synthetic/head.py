"""A made-up head: anatomy as a function of position, so that moving the points moves everything.

Positions are in mm, R, A, S, about the middle of the head. Sizes and places are round numbers that look
right; nothing is measured on a patient.
"""

from dataclasses import dataclass

import numpy as np

from brainseg_trainer.fields import Array, Noise, Points, blended, both, either, ellipsoid, fraction, waves

__all__ = ["Head", "build_head"]


@dataclass(frozen=True, eq=False)
class Head:
    """The parts of a head, each (I, J, K): distances in mm, positive inside, or fractions 0..1."""

    brain: Array
    """Distance to the surface of everything that the skull strip keeps."""
    cerebrum: Array
    """Distance to the surface of the cerebrum."""
    sulci: Array
    """Fraction: fluid in sulci and fissures and around the brain."""
    ventricles: Array
    """Fraction: fluid in the ventricles."""
    white: Array
    """Fraction: white matter."""
    bright_cortex: Array
    """Fraction: cortex that is brighter on FLAIR than the rest, as it is near the midline and the insula."""
    deep_grey: Array
    """Fraction: thalamus, putamen and caudate."""
    lesions: Array
    """Fraction: white-matter lesions of age, which are no tumour."""
    plexus: Array
    """Fraction: choroid plexus."""
    blood: Array
    """Fraction: sinuses and vessels."""
    dura: Array
    """Fraction: remains of the dura that the skull strip left."""


def build_head(points: Points, noise: Noise, rng: np.random.Generator) -> Head:
    """One person's head at the given positions."""
    sides = Points(np.abs(points.x), points.y, points.z)
    slope: Array = np.where(points.y < 0, np.float32(0.16), np.float32(-0.05))
    floor = points.z + 24 + slope * points.y
    cerebrum = _cerebrum(sides, floor)
    cerebellum = -blended(-ellipsoid(sides, (18, -58, -36), (36, 33, 25)), floor + 1, 6)
    stem = _stem(sides)
    brain = blended(blended(cerebrum, cerebellum, 12), stem, 12)

    depth = either(
        _sulci(points, cerebrum, noise, rng), _folia(points, cerebellum, rng), stem + np.float32(2)
    )
    atrophy, swelling = np.float32(rng.uniform(0.3, 1.2)), rng.uniform(0.0, 4.0)
    cortex = np.float32(rng.uniform(3.4, 4.4)) + np.float32(0.5) * noise(30)
    white = fraction(depth - cortex - atrophy, 2.5)
    ventricles = _ventricles(sides, swelling)
    return Head(
        brain=brain,
        cerebrum=cerebrum,
        sulci=fraction(atrophy - depth, 2),
        ventricles=fraction(ventricles, 2),
        white=white,
        bright_cortex=(1 - white) * fraction(noise(45) - np.float32(0.5), 0.5),
        deep_grey=_deep_grey(sides),
        lesions=_white_lesions(white, ventricles, cerebrum, noise, rng.uniform()),
        plexus=fraction(ventricles, 2) * fraction(ellipsoid(sides, (20, -38, 15), (5, 11, 6)) + noise(9), 2),
        blood=_blood(points, floor, cerebrum, noise, rng),
        dura=fraction(1 - np.abs(brain - 1), 2) * fraction(noise(40) - np.float32(0.7), 0.5),
    )


def _cerebrum(sides: Points, floor: Array) -> Array:
    """Both hemispheres, narrower in front, flat below but for the temporal lobes."""
    x, y, z = sides.x, sides.y, sides.z
    tapered = Points(x * (1 + np.float32(0.0018) * y), y, z)
    upper = -blended(-ellipsoid(tapered, (19, 0, 10), (47, 82, 58)), -floor, 16)
    tilted = Points(x + np.float32(0.12) * y, y, z + np.float32(0.1) * y)
    return blended(upper, ellipsoid(tilted, (43, 6, -22), (24, 44, 24)), 8)


def _stem(sides: Points) -> Array:
    leaning = Points(sides.x, sides.y + np.float32(0.3) * (sides.z + 30), sides.z)
    return ellipsoid(leaning, (0, -24, -40), (14, 14, 50))


def _sulci(points: Points, cerebrum: Array, noise: Noise, rng: np.random.Generator) -> Array:
    """Distance into the cerebrum's tissue from its surface, the nearest sulcus or the midline, in mm."""
    # Waves over the direction from the middle, not over position: their sheets then stand upright.
    radius = points.radius((0, 0, 8), (66, 82, 58)) + np.float32(0.15)
    outward = Points(points.x / radius, points.y / radius, points.z / radius)
    sheet = np.abs(waves(outward, rng.uniform(24, 29), rng) + np.float32(0.2) * noise(14))
    below = np.maximum(cerebrum - 15 - 4 * noise(30), 0)
    sulcus = np.sqrt(np.square(np.float32(4.6) * sheet) + below * below) + np.float32(0.6)
    flat = Points(np.zeros_like(points.x), points.y, points.z)
    callosum = np.maximum(1 - flat.radius((0, -6, 4), (1, 50, 26)), 0) * 26
    midline = np.sqrt(points.x * points.x + callosum * callosum)
    return both(cerebrum, sulcus, midline)


def _folia(points: Points, cerebellum: Array, rng: np.random.Generator) -> Array:
    """Distance into the cerebellum's tissue from its surface or the nearest of its fine folds, in mm."""
    flattened = Points(np.float32(0.4) * points.x, np.float32(0.7) * points.y, points.z)
    below = np.maximum(cerebellum - 12, 0)
    fold = np.sqrt(np.square(np.float32(2.2) * waves(flattened, 11, rng)) + below * below)
    return both(cerebellum, fold + np.float32(0.5))


def _ventricles(sides: Points, swelling: float) -> Array:
    """Distance to the ventricles' surface; ``swelling`` in mm makes them large."""
    return either(
        ellipsoid(sides, (9, 4, 18), (6 + swelling, 34, 6 + swelling)),  # front horns and bodies
        ellipsoid(sides, (20, -44, 14), (6 + swelling, 22, 7 + swelling)),  # back horns
        ellipsoid(sides, (31, -14, -12), (4 + swelling / 2, 20, 4 + swelling / 2)),  # lower horns
        ellipsoid(sides, (0, -8, 6), (2 + swelling / 2, 14, 9)),  # third
        ellipsoid(sides, (0, -42, -28), (6, 5, 8)),  # fourth
    )


def _deep_grey(sides: Points) -> Array:
    thalamus = ellipsoid(sides, (12, -18, 8), (9, 14, 9))
    putamen = ellipsoid(sides, (25, 2, 6), (6, 17, 10))
    caudate = ellipsoid(sides, (13, 14, 16), (5, 14, 8))
    return fraction(either(thalamus, putamen, caudate), 2)


def _white_lesions(white: Array, ventricles: Array, cerebrum: Array, noise: Noise, load: float) -> Array:
    """Spots in deep white matter and caps on the ventricles; ``load`` 0..1 is the burden of age."""
    spots = white * fraction(noise(13) - np.float32(2.0 - 0.7 * load), 0.5)
    spots *= fraction(24 - np.abs(ventricles + 6), 10)
    caps = fraction(ventricles + np.float32(1 + 4 * load), 3) * (cerebrum > 14)
    return either(spots, np.float32(0.8) * caps)


def _blood(points: Points, floor: Array, cerebrum: Array, noise: Noise, rng: np.random.Generator) -> Array:
    """The sagittal and transverse sinuses, and vessels near the surface."""
    x, y, z = points.x, points.y, points.z
    inward = ellipsoid(points, (0, 0, 10), (66, 82, 58)) - np.float32(1.5)
    sagittal = np.float32(rng.uniform(3.0, 5.0)) - np.sqrt(x * x + inward * inward)
    above = floor + 2
    transverse = np.float32(rng.uniform(3.0, 4.5)) - np.sqrt(above * above + inward * inward)
    # Where two noises are both 0 is a random curve through space.
    curve = np.sqrt(np.square(noise(30)) + np.square(noise(30))) * 9
    vessels = fraction(np.float32(1.8) - curve, 2) * fraction(14 - cerebrum, 4)
    return either(fraction(sagittal, 2) * ((z > 0) | (y < -50)), fraction(transverse, 2) * (y < -20), vessels)
