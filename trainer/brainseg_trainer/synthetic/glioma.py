"""A made-up glioma: a dead core in an enhancing rim in oedema that follows the white matter."""

from dataclasses import dataclass

import numpy as np

from brainseg_trainer.fields import Array, Noise, Points, fraction
from brainseg_trainer.synthetic.head import Head

__all__ = ["Glioma", "Growth", "draw_glioma", "grow", "push"]


@dataclass(frozen=True)
class Glioma:
    """Where a tumour sits and how large it is, in mm."""

    centre: tuple[float, float, float]
    """R, A, S."""
    core: float
    """Radius of core and rim together."""
    rim: float
    """Thickness of the rim."""
    oedema: float
    """How far oedema reaches beyond the rim in white matter."""


@dataclass(frozen=True, eq=False)
class Growth:
    """The parts of a tumour, each (I, J, K), a fraction 0..1; an inner one covers an outer one."""

    oedema: Array
    rim: Array
    necrosis: Array

    @property
    def labels(self) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
        """BraTS 2023 labels (I, J, K): NCR 1, ED 2, ET 3."""
        labels = np.zeros(self.oedema.shape, dtype=np.uint8)
        for part, value in ((self.oedema, 2), (self.rim, 3), (self.necrosis, 1)):
            labels[part > 0.5] = value
        return labels


def draw_glioma(rng: np.random.Generator) -> Glioma:
    """A tumour somewhere in either hemisphere."""
    side = rng.choice([-1.0, 1.0])
    core = rng.uniform(15.0, 22.0)
    return Glioma(
        centre=(side * rng.uniform(24.0, 42.0), rng.uniform(-48.0, 42.0), rng.uniform(2.0, 42.0)),
        core=core,
        rim=rng.uniform(6.0, 8.5),
        oedema=rng.uniform(8.0, 18.0),
    )


def push(points: Points, glioma: Glioma) -> Points:
    """Where the tissue now at each point would be without the tumour: it has been pushed outwards."""
    x, y, z = (p - np.float32(c) for p, c in zip((points.x, points.y, points.z), glioma.centre, strict=True))
    distance = np.sqrt(x * x + y * y + z * z)
    shift = np.float32(0.45 * glioma.core) * np.exp(-np.square(distance / np.float32(1.6 * glioma.core)))
    shift /= distance + 1
    return Points(points.x - shift * x, points.y - shift * y, points.z - shift * z)


def grow(points: Points, person: Points, glioma: Glioma, head: Head, noise: Noise) -> Growth:
    """Let a tumour grow in a head: its swelling closes sulci, but it enters neither ventricles nor blood.

    It stays off the cerebellum and in its hemisphere; ``person`` is where each point lies in that person.
    """
    side = np.float32(np.sign(glioma.centre[0]))
    room = np.clip(1 - head.ventricles - head.blood, 0, 1) * fraction(head.cerebrum - 2, 2)
    room *= fraction(side * person.x - 1, 2)
    roughness = 1 + np.float32(0.14) * noise(28) + np.float32(0.05) * noise(14)
    distance = points.radius(glioma.centre, (1, 1, 1)) * roughness
    paths = np.clip(np.float32(0.7) + np.float32(0.3) * head.white + np.float32(0.15) * noise(28), 0.05, 2)
    core, thickness = np.float32(glioma.core), np.float32(glioma.rim) * (1 + np.float32(0.2) * noise(18))
    oedema = fraction(core + np.float32(glioma.oedema) * paths - distance, 2) * room
    rim = fraction(core - distance, 2) * room
    return Growth(oedema, rim, necrosis=fraction(core - thickness - distance, 2) * rim)
