"""Lesion by lesion, as BraTS scores since 2023: a missed or a made-up lesion costs as much as a large one.

The rules are those of the challenge's own program (Saluja and others 2023): lesions of the truth whose
dilations touch are one; every piece of the answer that touches a dilated lesion belongs to it, whole.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from brainseg_runtime.labels import components
from brainseg_runtime.overlap import dice
from numpy.typing import NDArray
from scipy import ndimage

from brainseg_trainer.scoring.surfaces import ABSENT_MM, surface_distances

__all__ = ["LesionScore", "lesion_wise"]

Mask = NDArray[np.bool_]

DILATION = 3
"""Steps to neighbours by a face or an edge; the challenge's value for glioma."""
SMALLEST_MM3 = 50.0
"""Lesions of the truth up to this size are not counted; the challenge's value for glioma."""


@dataclass(frozen=True)
class LesionScore:
    """How well the lesions of one region were found."""

    dice: float
    hd95: float
    """In mm."""
    lesions: int
    """Of the truth that count."""
    found: int
    """Of these, how many the answer touches."""
    false: int
    """Pieces of the answer that belong to no lesion."""


def lesion_wise(
    answer: Mask,
    truth: Mask,
    spacing: tuple[float, float, float],
    *,
    dilation: int = DILATION,
    smallest_mm3: float = SMALLEST_MM3,
) -> LesionScore:
    """Score two masks (I, J, K) on a grid of voxels of ``spacing`` mm, lesion by lesion."""
    grown = components(_dilated(truth, dilation))
    pieces = components(answer)
    voxel = float(np.prod(spacing))
    matched: set[int] = set()
    scores: list[tuple[float, float]] = []
    found = 0
    for number in range(1, int(grown.max(initial=0)) + 1):
        touched = _numbers(pieces[grown == number])
        matched |= touched
        lesion = truth & (grown == number)
        if np.count_nonzero(lesion) * voxel <= smallest_mm3:
            continue
        found += bool(touched)
        mine = np.isin(pieces, list(touched))
        scores.append((dice(mine, lesion), surface_distances(mine, lesion, spacing).hd95))
    false = len(_numbers(pieces) - matched)
    return LesionScore(
        dice=_mean((d for d, _ in scores), false, 0.0, 1.0),
        hd95=_mean((h for _, h in scores), false, ABSENT_MM, 0.0),
        lesions=len(scores),
        found=found,
        false=false,
    )


def _mean(values: Iterable[float], false: int, of_false: float, of_none: float) -> float:
    """Mean over lesions and made-up lesions; ``of_none`` where there are neither."""
    everything = [*values, *[of_false] * false]
    return float(np.mean(everything)) if everything else of_none


def _dilated(mask: Mask, steps: int) -> Mask:
    if steps == 0 or not mask.any():
        return mask
    neighbours = ndimage.generate_binary_structure(3, 2)
    grown: Mask = ndimage.binary_dilation(mask, neighbours, iterations=steps)
    return grown


def _numbers(pieces: NDArray[np.int32]) -> set[int]:
    return set(np.unique(pieces).tolist()) - {0}
