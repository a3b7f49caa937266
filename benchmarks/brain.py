"""A scan of BraTS' size for measurements."""

from pathlib import Path

import numpy as np
from brainseg_runtime.geometry import Geometry
from brainseg_runtime.nifti import write_image
from brainseg_trainer.synthetic import synthesise

__all__ = ["write_scan"]

SUFFIXES = ("t1n", "t1c", "t2w", "t2f")


def write_scan(folder: Path) -> None:
    """A synthetic scan stretched to BraTS' grid, 240x240x155 voxels of 1 mm, four int16 ``.nii.gz``."""
    source = synthesise(seed=7)
    shape = (240, 240, 155)
    nearest = np.ix_(*(np.arange(n) * o // n for n, o in zip(shape, source.data.shape[:3], strict=True)))
    geometry = Geometry(shape, np.array([[-1, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1.0]]))
    folder.mkdir(parents=True, exist_ok=True)
    for c, suffix in enumerate(SUFFIXES):
        write_image(folder / f"synthetic-{suffix}.nii.gz", source.data[..., c][nearest], geometry)
