"""From anatomy to files: four contrasts, the scanner's flaws, and BraTS names.

No single contrast tells the tumour: fluid is bright on T2, white-matter lesions on FLAIR, sinuses, vessels,
plexus and dura on T1c, and shading mixes what is left.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from brainseg_runtime.geometry import Geometry
from brainseg_runtime.nifti import write_image, write_labels
from numpy.typing import NDArray

from brainseg_trainer.fields import Array, Noise, Points, either, smooth_noise
from brainseg_trainer.synthetic.glioma import Growth, draw_glioma, grow, push
from brainseg_trainer.synthetic.head import Head, build_head
from brainseg_trainer.task import BRATS_WORDS

__all__ = ["SyntheticScan", "synthesise", "write_scans"]

SHAPE = (80, 100, 80)
"""(I, J, K) voxels."""
SPACING = 2.0
"""Voxel size, in mm: the whole head in few enough voxels to train on in minutes."""

INTENSITY = {
    #              T1     T1c    T2     FLAIR
    "grey": (66.0, 70.0, 118.0, 92.0),
    "bright cortex": (68.0, 72.0, 122.0, 124.0),
    "white": (100.0, 102.0, 84.0, 70.0),
    "deep grey": (80.0, 84.0, 104.0, 84.0),
    "fluid": (30.0, 30.0, 205.0, 28.0),
    "white lesion": (86.0, 88.0, 132.0, 120.0),
    "plexus": (66.0, 150.0, 150.0, 88.0),
    "dura": (62.0, 122.0, 80.0, 66.0),
    "blood": (62.0, 162.0, 44.0, 42.0),
    "oedema": (76.0, 78.0, 156.0, 132.0),
    "rim": (72.0, 146.0, 124.0, 108.0),
    "necrosis": (48.0, 52.0, 165.0, 72.0),
}
"""Mean of each tissue on each contrast, healthy white matter on T1 being 100."""


@dataclass(frozen=True, eq=False)
class SyntheticScan:
    """A made-up scan with its truth."""

    data: NDArray[np.int16]
    """(I, J, K, C), C in the order t1, t1c, t2, flair; background 0, brain above 0."""
    labels: NDArray[np.uint8]
    """(I, J, K): NCR 1, ED 2, ET 3, as in BraTS 2023."""
    geometry: Geometry
    """Axes towards L, P, S, as in BraTS."""


def synthesise(seed: int, index: int = 0) -> SyntheticScan:
    """Scan number ``index`` of a seed; the same two numbers give the same scan."""
    rng = np.random.default_rng([seed, index])

    def noise(wavelength: float) -> Array:
        return smooth_noise(SHAPE, (wavelength / SPACING,) * 3, rng)

    points = _positions()
    glioma = draw_glioma(rng)
    person = _individual(push(points, glioma), noise, rng)
    head = build_head(person, noise, rng)
    growth = grow(points, person, glioma, head, noise)
    image = _paint(head, growth, noise, rng)
    inside = head.brain > 0
    labels = np.where(inside, growth.labels, 0).astype(np.uint8)
    return SyntheticScan(
        np.ascontiguousarray(_acquire(image, inside, noise, rng)[::-1, ::-1]),
        np.ascontiguousarray(labels[::-1, ::-1]),
        _geometry(points, rng),
    )


def write_scans(out: Path, count: int, seed: int, report: Callable[[str, int, int], None]) -> list[str]:
    """Write scans 0 to ``count`` - 1 of a seed under ``out``, a folder each; returns their names.

    ``report`` is told how many of how many are done.

    Raises:
        OutputUnwritable: ``E_OUTPUT``.
    """
    names = [f"synthetic-{seed}-{index:04d}" for index in range(count)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # NumPy lets go of the interpreter in long operations, so threads are enough.
        written = pool.map(partial(_write, out, seed), range(count), names)
        for done, _ in enumerate(written, start=1):
            report("making scans", done, count)
    return names


def _write(out: Path, seed: int, index: int, name: str) -> None:
    scan = synthesise(seed, index)
    for channel, word in enumerate(BRATS_WORDS.values()):
        write_image(out / name / f"{name}-{word}.nii.gz", scan.data[..., channel], scan.geometry)
    write_labels(out / name / f"{name}-seg.nii.gz", scan.labels, scan.geometry)


def _positions() -> Points:
    """Every voxel's place in mm, R, A, S, the head in the middle."""
    middle = (0.0, -6.0, 8.0)
    axes = [
        (np.arange(n, dtype=np.float32) - np.float32((n - 1) / 2)) * np.float32(SPACING) + np.float32(c)
        for n, c in zip(SHAPE, middle, strict=True)
    ]
    return Points(*np.meshgrid(*axes, indexing="ij"))


def _individual(points: Points, noise: Noise, rng: np.random.Generator) -> Points:
    """Another person's head: scaled and bent."""
    x, y, z = (
        values * np.float32(rng.uniform(0.93, 1.07)) + 3 * noise(50)
        for values in (points.x, points.y, points.z)
    )
    return Points(x, y, z)


def _paint(head: Head, growth: Growth, noise: Noise, rng: np.random.Generator) -> Array:
    """Tissue over tissue on every contrast, (C, I, J, K), white matter on T1 about 100."""
    means = {
        tissue: np.array(mean * np.exp(rng.normal(0.0, 0.05, 4)), np.float32)
        for tissue, mean in INTENSITY.items()
    }
    infiltration = np.clip(np.float32(0.95) + np.float32(0.05) * noise(20), 0.5, 1)
    layers = (
        ("bright cortex", head.bright_cortex),
        ("white", head.white),
        ("deep grey", head.deep_grey),
        ("white lesion", head.lesions),
        ("fluid", either(head.sulci, head.ventricles)),
        ("plexus", head.plexus),
        ("dura", head.dura),
        ("blood", head.blood),
        ("oedema", growth.oedema * infiltration),
        ("rim", growth.rim),
        ("necrosis", growth.necrosis),
    )
    image = np.empty((4, *SHAPE), dtype=np.float32)
    image[:] = means["grey"][:, None, None, None]
    for tissue, share in layers:
        for contrast, mean in zip(image, means[tissue], strict=True):
            contrast += share * (mean - contrast)
    image *= 1 + np.float32(0.04) * noise(7)
    return image


def _acquire(
    image: Array, inside: NDArray[np.bool_], noise: Noise, rng: np.random.Generator
) -> NDArray[np.int16]:
    """What a scanner makes of it: shading, noise, its own units, the skull stripped; (I, J, K, C)."""
    data = np.zeros((*SHAPE, len(image)), dtype=np.int16)
    shared = noise(90)
    for c, contrast in enumerate(image):
        shading = np.exp(np.float32(0.08) * (shared + noise(90)))
        signal = contrast * shading + 4 * rng.standard_normal(SHAPE, dtype=np.float32)
        units = np.abs(signal) * np.float32(rng.uniform(2.0, 12.0))
        data[..., c] = np.where(inside, np.clip(units, 1, np.iinfo(np.int16).max), 0)
    return data


def _geometry(points: Points, rng: np.random.Generator) -> Geometry:
    """The grid of an array whose first two axes have been reversed; the head not quite in the middle."""
    affine = np.diag([-SPACING, -SPACING, SPACING, 1.0])
    affine[:3, 3] = (points.x.max(), points.y.max(), points.z.min())
    affine[:3, 3] += rng.uniform(-15.0, 15.0, 3)
    return Geometry(SHAPE, affine)
