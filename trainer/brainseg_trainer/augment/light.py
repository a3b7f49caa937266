"""Mirrors, and intensities changed a little: what a short training on easy data needs."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Augmentation", "apply", "draw"]


@dataclass(frozen=True)
class Augmentation:
    """What happens to one tile; one number per modality where there are several."""

    flips: tuple[bool, bool, bool]
    """Which axes are mirrored."""
    gain: tuple[float, ...]
    """Contrast, about the brain's mean."""
    shift: tuple[float, ...]
    """Brightness, in standard deviations of the brain."""
    bend: tuple[float, ...]
    """How much bright differences grow against dark ones, in 1 / standard deviations: a gentle gamma."""
    noise: float
    """Deviation of white noise, in standard deviations of the brain."""
    noise_seed: int


def draw(rng: np.random.Generator, modalities: int) -> Augmentation:
    """Choose an augmentation, ranges after nnU-Net's: contrast 0.75..1.25, noise up to 0.15."""
    mirrored = rng.random(3) < 0.5
    return Augmentation(
        flips=(bool(mirrored[0]), bool(mirrored[1]), bool(mirrored[2])),
        gain=tuple(rng.uniform(0.75, 1.25, modalities).tolist()),
        shift=tuple(rng.uniform(-0.2, 0.2, modalities).tolist()),
        bend=tuple(rng.uniform(-0.08, 0.08, modalities).tolist()),
        noise=float(rng.uniform(0.0, 0.15)),
        noise_seed=int(rng.integers(2**32)),
    )


def apply(
    augmentation: Augmentation, image: NDArray[np.float32], labels: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """An altered copy of a tile (i, j, k, C) and its labels (i, j, k).

    Intensities change in the brain alone: background stays exactly 0, as it is when the model is used.
    """
    steps = tuple(slice(None, None, -1 if flip else 1) for flip in augmentation.flips)
    image, labels = image[steps], labels[steps]
    noise = np.random.default_rng(augmentation.noise_seed).standard_normal(image.shape, dtype=np.float32)
    gain, shift, bend = np.array([augmentation.gain, augmentation.shift, augmentation.bend], np.float32)
    # Squares beyond 3 deviations would let a bright vessel run away.
    altered = image * gain + shift + bend * np.square(np.clip(image, -3, 3))
    altered += np.float32(augmentation.noise) * noise
    altered *= (image != 0).any(axis=-1, keepdims=True)
    return altered, np.ascontiguousarray(labels)
