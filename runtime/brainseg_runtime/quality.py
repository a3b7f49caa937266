"""Reasons to look twice at a result: few, simple, each with the numbers that it rests on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from brainseg_runtime.certainty import VolumeRange
from brainseg_runtime.preprocess import Placement
from brainseg_runtime.spec import ModelSpec
from brainseg_runtime.volume import Segmentation

__all__ = ["FLAGS", "Flag", "quality_flags"]

FLAGS: Mapping[str, str] = {
    "Q_EMPTY": "no tumour was found",
    "Q_BORDERLINE": "a region is about as small as what is dropped as a speck",
    "Q_EDGE": "the mask reaches the edge of the brain's box or of the image, and may go on outside",
    "Q_UNSURE": "a region's volume depends much on where the threshold lies",
    "Q_IMPLAUSIBLE": "a region is larger than tumours are",
    "Q_EXCHANGED": "two modalities look as if each bore the other's name",
    "Q_OTHER_HEAD": "the files of two modalities do not fill the same brain",
    "Q_MIRRORED": "the file of a modality looks mirrored against another",
    "Q_ABSENT": "a modality was not given; the model was trained to do without it, less well",
}
"""Every flag that a result can carry, and what it means. Codes are never reused."""

BORDERLINE_MM3 = 100.0
"""The smallest enhancing tumour among 239 training patients of BraTS 2020 has 102 mm3. Of a region
whose specks are dropped, twice that limit if it is more."""
EDGE_MM2 = 10.0
"""Area on one face of the brain's box from which a contact is more than a corner."""
UNSURE_SHARE = 0.5
"""Share of a region's volume that may lie within the margin of doubt: for a ball of 20 ml a shell of
2.8 mm, for one of 1 ml a shell of 1 mm."""
IMPLAUSIBLE_ML = 400.0
"""The largest whole tumour among 239 training patients of BraTS 2020 has 254 ml."""

SIDES = (("left", "right"), ("posterior", "anterior"), ("inferior", "superior"))


@dataclass(frozen=True)
class Flag:
    """One reason to look twice."""

    code: str
    words: str
    region: str | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)


def quality_flags(
    segmentation: Segmentation,
    ranges: Mapping[str, VolumeRange],
    placement: Placement,
    spec: ModelSpec,
    absent: Sequence[str] = (),
) -> list[Flag]:
    """All flags of a result, region by region in the spec's order; ``absent`` are modalities not given."""
    flags = [Flag("Q_ABSENT", f"{name} was not given; the model sees less without it.") for name in absent]
    flags += [] if segmentation.labels.any() else [Flag("Q_EMPTY", "No tumour was found.")]
    # A few slices end somewhere in the tumour; that is no news.
    within = [axis for axis in range(3) if not (spec.thin and spec.divisor[axis] == 1)]
    flags += _edges(segmentation, placement, within)
    volumes = segmentation.volumes_ml()
    for described in spec.regions:
        region, ml = described.name, volumes[described.name]
        smallest = max(BORDERLINE_MM3, 2 * described.min_volume_mm3) / 1000.0
        flags += _borderline(region, ml, ranges[region], smallest)
        flags += _unsure(region, ranges[region], smallest)
        flags += _implausible(region, ml)
    return flags


def _edges(segmentation: Segmentation, placement: Placement, axes: Sequence[int]) -> list[Flag]:
    """One flag that names every face of the brain's box, across some axes, that the mask lies on.

    Beyond the box there is no mask; where the image ends there, the box does too.
    """
    box = placement.reorientation.apply(segmentation.labels)[placement.box]
    spacing = placement.reorientation.geometry(placement.scan).spacing
    contacts = {}
    for axis in axes:
        pixel = float(np.prod([mm for a, mm in enumerate(spacing) if a != axis]))
        for side, at in zip(SIDES[axis], (0, -1), strict=True):
            area = round(np.count_nonzero(np.moveaxis(box, axis, 0)[at]) * pixel, 1)
            if area >= EDGE_MM2:
                contacts[f"{side}_mm2"] = area
    if not contacts:
        return []
    where = ", ".join(f"{name.removesuffix('_mm2')} ({area:g} mm2)" for name, area in contacts.items())
    return [Flag("Q_EDGE", f"The mask reaches the edge and may go on outside: {where}.", numbers=contacts)]


def _borderline(region: str, ml: float, doubt: VolumeRange, smallest: float) -> list[Flag]:
    numbers = {"ml": round(ml, 4), "decided_ml": doubt.decided_ml, "borderline_ml": smallest}
    if 0 < ml < smallest:
        words = f"{region} has {ml:.3f} ml, less than {smallest:g} ml; it may be a speck."
        return [Flag("Q_BORDERLINE", words, region, numbers)]
    if ml == 0 < doubt.decided_ml:
        words = f"All of {region}, {doubt.decided_ml:.3f} ml, was dropped as specks."
        return [Flag("Q_BORDERLINE", words, region, numbers)]
    return []


def _unsure(region: str, doubt: VolumeRange, smallest: float) -> list[Flag]:
    between = doubt.perhaps_ml - doubt.surely_ml
    if between < smallest or between <= UNSURE_SHARE * doubt.decided_ml:
        return []
    words = (
        f"{region} could be anything from {doubt.surely_ml:.2f} to {doubt.perhaps_ml:.2f} ml: "
        "so much depends on the threshold."
    )
    return [Flag("Q_UNSURE", words, region, vars(doubt))]


def _implausible(region: str, ml: float) -> list[Flag]:
    if ml <= IMPLAUSIBLE_ML:
        return []
    words = f"{region} has {ml:.0f} ml, more than {IMPLAUSIBLE_ML:g} ml."
    return [Flag("Q_IMPLAUSIBLE", words, region, {"ml": round(ml, 4), "limit_ml": IMPLAUSIBLE_ML})]
