"""How bright a tile's voxels are: nnU-Net's table for z-scored images, a bias field, and absent modalities.

Intensities change in the brain alone, which is wherever any modality is not 0; background stays exactly 0, as
it is when the model is used.
"""

from dataclasses import dataclass

import numpy as np
from brainseg_runtime.preprocess import interpolate
from numpy.typing import NDArray
from scipy import ndimage

from brainseg_trainer.fields import smooth_noise

__all__ = ["Looks", "apply", "draw"]

Image = NDArray[np.float32]
Numbers = tuple[float, ...]
"""One per modality."""


@dataclass(frozen=True)
class Looks:
    """What happens to the intensities of a tile, in this order; 0 or 1 where nothing does."""

    noise: float
    """Deviation of white noise."""
    noise_seed: int
    blur: Numbers
    """Sigma of a Gaussian, voxels."""
    gain: Numbers
    """Brightness, times."""
    shift: Numbers
    """Brightness, plus."""
    contrast: Numbers
    """About the brain's mean, within the range that there was."""
    coarse: Numbers
    """Resolution, relative to what it was."""
    gamma: Numbers
    """Exponent over the range of the brain, mean and deviation kept."""
    negative: bool
    """Whether the exponent bends the negative image."""
    bias: float
    """Largest part by which shading changes the signal."""
    bias_seed: int
    absent: tuple[bool, ...]
    """Modalities that are 0 everywhere."""


def draw(rng: np.random.Generator, modalities: int) -> Looks:
    """Choose looks: nnU-Net's moreDA; of its DA3 the added brightness; shading in three tiles of ten.

    Each modality is absent in one tile of ten, never all of them.
    """

    def of_each(chance: float, low: float, high: float, neutral: float, share: float = 1.0) -> Numbers:
        happens = (rng.random() < chance) & (rng.random(modalities) < share)
        return tuple(np.where(happens, rng.uniform(low, high, modalities), neutral).tolist())

    absent = rng.random(modalities) < 0.1
    absent[rng.integers(modalities)] = False
    return Looks(
        noise=float(rng.uniform(0.0, np.sqrt(0.1)) * (rng.random() < 0.1)),
        noise_seed=int(rng.integers(2**32)),
        blur=of_each(0.2, 0.5, 1.0, 0.0, share=0.5),
        gain=of_each(0.15, 0.75, 1.25, 1.0),
        shift=of_each(0.3, -0.2, 0.2, 0.0),
        contrast=of_each(0.15, 0.75, 1.25, 1.0),
        coarse=of_each(0.25, 0.5, 1.0, 1.0, share=0.5),
        gamma=of_each(0.3, 0.7, 1.5, 1.0),
        negative=bool(rng.random() < 0.25),
        bias=float(rng.uniform(0.05, 0.3) * (rng.random() < 0.3)),
        bias_seed=int(rng.integers(2**32)),
        absent=tuple(absent.tolist()),
    )


def apply(looks: Looks, image: Image) -> Image:
    """An altered copy of a tile (i, j, k, C)."""
    brain = (image != 0).any(axis=-1)
    altered = np.zeros_like(image)
    if not brain.any():
        return altered
    noise = np.random.default_rng(looks.noise_seed)
    shading = _shading(looks, brain.shape)
    for c in range(image.shape[-1]):
        if looks.absent[c]:
            continue
        values = np.ascontiguousarray(image[..., c])
        if looks.noise:
            values = values + np.float32(looks.noise) * noise.standard_normal(values.shape, np.float32)
        if looks.blur[c]:
            values = ndimage.gaussian_filter(values, looks.blur[c], truncate=3.0)
        values = values * np.float32(looks.gain[c]) + np.float32(looks.shift[c])
        values = _contrasted(values, brain, looks.contrast[c])
        if looks.coarse[c] < 1.0:
            values = _coarsened(values, looks.coarse[c])
        values = _bent(values, brain, looks.gamma[c], looks.negative)
        if shading is not None:
            # A z-score does not tell the signal's mean: in the brain it is about SIGNAL deviations.
            values = (values + SIGNAL) * shading - SIGNAL
        altered[..., c] = values
    altered *= brain[..., None]
    return altered


SIGNAL = np.float32(4.0)
"""Mean of a brain's signal in deviations of its own; measured on four modalities: 3 to 5."""


def _contrasted(values: Image, brain: NDArray[np.bool_], factor: float) -> Image:
    if factor == 1.0:
        return values
    inside = values[brain]
    mean = inside.mean()
    stretched: Image = (values - mean) * np.float32(factor) + mean
    return np.clip(stretched, inside.min(), inside.max())


def _coarsened(values: Image, share: float) -> Image:
    """Sampled on a coarser grid by nearest neighbours, and brought back linearly."""
    i, j, k = values.shape
    coarse = values
    for axis, n in enumerate((i, j, k)):
        few = max(1, round(n * share))
        nearest = np.floor((np.arange(few) + 0.5) * n / few).astype(np.intp)
        coarse = np.take(coarse, nearest, axis=axis)
    return interpolate(coarse, (i, j, k))


def _bent(values: Image, brain: NDArray[np.bool_], gamma: float, negative: bool) -> Image:
    """A power of the intensities over the brain's range, brought back to the brain's mean and deviation."""
    if gamma == 1.0:
        return values
    sign = np.float32(-1.0 if negative else 1.0)
    inside = sign * values[brain]
    low, spread = inside.min(), np.ptp(inside)
    if spread == 0:
        return values
    bent = np.clip((sign * values - low) / spread, 0, 1) ** np.float32(gamma)
    after = bent[brain]
    scale = inside.std() / max(float(after.std()), 1e-6)
    result: Image = sign * ((bent - after.mean()) * np.float32(scale) + inside.mean())
    return result


def _shading(looks: Looks, shape: tuple[int, ...]) -> Image | None:
    """A smooth field about 1, no farther from it than the drawn part: a coil's sensitivity."""
    if not looks.bias:
        return None
    i, j, k = shape
    longest = float(2 * max(shape))
    field = smooth_noise((i, j, k), (longest, longest, longest), np.random.default_rng(looks.bias_seed))
    field /= np.abs(field).max() + np.float32(1e-6)
    shading: Image = 1 + np.float32(looks.bias) * field
    return shading
