"""Reasons to look twice: each flag is raised for what it names and for nothing else."""

import numpy as np
import pytest
from brainseg_runtime.certainty import VolumeRange
from brainseg_runtime.preprocess import Placement, prepare
from brainseg_runtime.quality import FLAGS, quality_flags
from brainseg_runtime.segmenter import Segmenter
from brainseg_runtime.volume import Segmentation
from toys import phantom, toy_engine, toy_regions, toy_spec, toy_volume

SURE = VolumeRange(0.95, 1.0, 1.05)


def placed(volume) -> Placement:
    return prepare(volume, toy_spec()).placement


def flagged(segmentation, volume, spec=None, **ranges):
    """Code -> flag, with every region's range sure unless said otherwise."""
    whole = {name: ranges.get(name, SURE) for name in segmentation.regions}
    flags = quality_flags(segmentation, whole, placed(volume), spec or toy_spec())
    assert all(flag.code in FLAGS for flag in flags)
    return {flag.code: flag for flag in flags}


def relabelled(segmentation, labels) -> Segmentation:
    return Segmentation(
        labels.astype(np.uint8), segmentation.geometry, segmentation.names, segmentation.regions
    )


def test_an_ordinary_result_has_no_flags():
    """A lesion of some ml inside the brain, sure of itself."""
    volume, segmentation = phantom()
    assert flagged(segmentation, volume) == {}


def test_an_empty_result_is_said_to_be_empty():
    """And not borderline, since nothing was dropped."""
    volume, segmentation = phantom(empty=True)
    nothing = dict.fromkeys(("WT", "TC", "ET"), VolumeRange(0, 0, 0))
    assert set(flagged(segmentation, volume, **nothing)) == {"Q_EMPTY"}


@pytest.mark.parametrize("codes", ["LPS", "RAS", "SAL"])
def test_a_mask_at_the_edge_names_the_side(codes):
    """On the patient's left and at the top, in any storage order, with the area of the contact."""
    volume, segmentation = phantom(codes)
    placement = placed(volume)
    labels = segmentation.labels.copy()
    box = placement.reorientation.apply(labels)[placement.box]
    box[0, :5, :4] = 2
    box[:6, 40, -1] = 2
    flags = flagged(relabelled(segmentation, labels), volume)
    assert flags["Q_EDGE"].numbers == {"left_mm2": 21.0}
    box[0:20, 40, -1] = 2
    flags = flagged(relabelled(segmentation, labels), volume)
    assert set(flags["Q_EDGE"].numbers) == {"left_mm2", "superior_mm2"}
    assert "left" in flags["Q_EDGE"].words


def test_small_regions_are_borderline():
    """Below 0.1 ml, below twice the spec's own limit, or dropped altogether."""
    volume, segmentation = phantom()
    few = np.where(segmentation.labels == 3, 2, segmentation.labels)
    few[tuple(np.argwhere(segmentation.labels == 3)[:20].T)] = 3
    assert flagged(relabelled(segmentation, few), volume)["Q_BORDERLINE"].region == "ET"
    assert "Q_BORDERLINE" in flagged(segmentation, volume, toy_spec(regions=toy_regions(5000.0)))
    none = np.where(segmentation.labels == 3, 2, segmentation.labels)
    dropped = flagged(relabelled(segmentation, none), volume, ET=VolumeRange(0.01, 0.02, 0.03))
    assert "dropped" in dropped["Q_BORDERLINE"].words
    gone = flagged(relabelled(segmentation, none), volume, ET=VolumeRange(0, 0, 0))
    assert "Q_BORDERLINE" not in gone


def test_a_region_that_hangs_on_the_threshold_is_unsure():
    """Where more than half of the volume is in doubt, also where nothing was found but something might be."""
    volume, segmentation = phantom()
    flags = flagged(segmentation, volume, TC=VolumeRange(0.5, 1.0, 1.2))
    assert (flags["Q_UNSURE"].region, flags["Q_UNSURE"].numbers["perhaps_ml"]) == ("TC", 1.2)
    assert "Q_UNSURE" not in flagged(segmentation, volume, TC=VolumeRange(0.8, 1.0, 1.2))
    assert "Q_UNSURE" in flagged(segmentation, volume, TC=VolumeRange(0.0, 0.0, 0.2))
    assert "Q_UNSURE" not in flagged(segmentation, volume, TC=VolumeRange(0.0, 0.0, 0.02))


def test_more_than_a_tumour_can_have_is_implausible():
    """Above 400 ml."""
    volume, segmentation = phantom()
    whole = np.full_like(segmentation.labels, 2)
    flags = flagged(relabelled(segmentation, whole), volume)
    assert flags["Q_IMPLAUSIBLE"].region == "WT"


def test_flags_stand_in_every_record():
    """As plain values that JSON can hold."""
    spec = toy_spec()
    with Segmenter(spec, toy_engine(spec)) as segmenter:
        record = segmenter.segment(toy_volume()).record
    assert {flag["code"] for flag in record["flags"]} <= set(FLAGS)
    assert all(set(flag) == {"code", "words", "region", "numbers"} for flag in record["flags"])
