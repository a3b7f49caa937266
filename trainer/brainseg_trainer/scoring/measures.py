"""How well one mask agrees with the truth: overlap in voxels, distances in mm, volumes in ml."""

from dataclasses import asdict, dataclass

import numpy as np
from brainseg_runtime.overlap import dice
from numpy.typing import NDArray

from brainseg_trainer.scoring.lesions import lesion_wise
from brainseg_trainer.scoring.surfaces import box_of, surface_distances

__all__ = ["Measures", "measure"]

Mask = NDArray[np.bool_]
NOWHERE = float("nan")
"""A ratio whose denominator is 0; left out of means, and null in JSON."""


@dataclass(frozen=True)
class Measures:
    """All that is measured of one region in one scan; a ratio without a denominator is NaN."""

    dice: float
    """0 to 1; two empty masks agree: 1."""
    iou: float
    """Intersection over union, 0 to 1; two empty masks agree: 1."""
    sensitivity: float
    """Part of the truth that was found; NaN where the truth is empty."""
    precision: float
    """Part of the answer that is true; NaN where the answer is empty."""
    hd95_mm: float
    """95th percentile of the distance between surfaces; 0 for two empty masks, 374 if one is empty."""
    assd_mm: float
    """Mean distance between surfaces; empty masks as for ``hd95_mm``."""
    nsd_1mm: float
    """Part of both surfaces within 1 mm of the other one, 0 to 1; two empty masks agree: 1."""
    lesion_dice: float
    """Mean Dice over lesions, as in BraTS 2023; no lesion in either agrees: 1."""
    lesion_hd95_mm: float
    """Mean of the lesions' 95th percentiles, as in BraTS 2023; no lesion in either: 0."""
    truth_ml: float
    answer_ml: float
    volume_error_ml: float
    """Answer less truth."""
    volume_error: float
    """Answer less truth, as part of the truth; NaN where the truth is empty."""

    def as_dict(self) -> dict[str, float]:
        """Name -> value."""
        return asdict(self)


def measure(answer: Mask, truth: Mask, spacing: tuple[float, float, float]) -> Measures:
    """Compare two masks (I, J, K) on one grid of voxels of ``spacing`` mm."""
    both = int(np.count_nonzero(answer & truth))
    in_answer, in_truth = int(np.count_nonzero(answer)), int(np.count_nonzero(truth))
    either = in_answer + in_truth - both
    box = box_of(answer | truth, LESION_MARGIN)
    distances = surface_distances(answer[box], truth[box], spacing)
    lesions = lesion_wise(answer[box], truth[box], spacing)
    ml = float(np.prod(spacing)) / 1000.0
    return Measures(
        dice=dice(answer, truth),
        iou=both / either if either else 1.0,
        sensitivity=both / in_truth if in_truth else NOWHERE,
        precision=both / in_answer if in_answer else NOWHERE,
        hd95_mm=distances.hd95,
        assd_mm=distances.assd,
        nsd_1mm=distances.nsd(1.0),
        lesion_dice=lesions.dice,
        lesion_hd95_mm=lesions.hd95,
        truth_ml=in_truth * ml,
        answer_ml=in_answer * ml,
        volume_error_ml=(in_answer - in_truth) * ml,
        volume_error=(in_answer - in_truth) / in_truth if in_truth else NOWHERE,
    )


LESION_MARGIN = 8
"""Voxels kept around the masks: beyond any dilation, so that no measure sees the cut."""
