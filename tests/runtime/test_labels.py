"""Thresholds, nesting, connected pieces."""

from dataclasses import replace

import numpy as np
import pytest
from brainseg_runtime.errors import BundleInvalid
from brainseg_runtime.labels import components, decide, drop_specks
from brainseg_runtime.spec import Label, Region
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from toys import toy_regions, toy_spec

LOGITS = arrays(np.float32, (4, 5, 3, 3), elements=st.floats(-5, 5, width=32))


@given(LOGITS)
def test_regions_are_nested_whatever_the_network_says(logits):
    """ET lies in TC lies in WT, and every region holds at least the voxels over its threshold."""
    spec = toy_spec()
    labels = decide(logits, spec)
    masks = {region.name: np.isin(labels, region.labels) for region in spec.regions}
    assert not (masks["ET"] & ~masks["TC"]).any()
    assert not (masks["TC"] & ~masks["WT"]).any()
    for r, region in enumerate(spec.regions):
        assert masks[region.name][logits[..., r] >= 0].all()


@given(LOGITS, st.floats(0.1, 0.9))
def test_a_threshold_is_a_probability(logits, threshold):
    """The innermost region is where the sigmoid reaches its threshold."""
    spec = toy_spec(regions=(Region("WT", (1, 2, 3)), Region("TC", (1, 3)), Region("ET", (3,), threshold)))
    probability = 1 / (1 + np.exp(-logits[..., 2].astype(np.float64)))
    clear = abs(probability - threshold) > 1e-6
    np.testing.assert_array_equal((decide(logits, spec) == 3)[clear], (probability >= threshold)[clear])


def test_softmax_takes_the_largest():
    """A softmax model's labels are those of its channels, in the channels' own order."""
    spec = toy_spec(activation="softmax", channels=(0, 3, 1, 2))
    logits = np.eye(4, dtype=np.float32)[None, None]
    np.testing.assert_array_equal(decide(logits, spec)[0, 0], [0, 3, 1, 2])


def flood(mask):
    """Count pieces by walking from voxel to voxel: an independent, slow witness."""
    left = {tuple(v) for v in np.argwhere(mask)}
    sizes = []
    while left:
        stack, size = [left.pop()], 0
        while stack:
            i, j, k = stack.pop()
            size += 1
            near = {(i + a, j + b, k + c) for a in (-1, 0, 1) for b in (-1, 0, 1) for c in (-1, 0, 1)} & left
            left -= near
            stack.extend(near)
        sizes.append(size)
    return sorted(sizes)


@settings(max_examples=60)
@given(arrays(np.bool_, (6, 7, 5), elements=st.booleans()), st.floats(0, 1))
def test_components_are_those_that_a_walk_finds(mask, keep):
    """Vectorised numbering agrees with a walk over touching voxels."""
    mask = mask & (np.random.default_rng(0).random(mask.shape) < keep)
    numbers = components(mask)
    assert ((numbers > 0) == mask).all()
    assert sorted(np.bincount(numbers.ravel())[1:].tolist()) == flood(mask)


def test_a_snake_is_one_piece():
    """A long, thin, winding piece is found whole."""
    mask = np.zeros((41, 41, 1), bool)
    mask[::2] = True
    for row in range(1, 41, 2):
        mask[row, -1 if row % 4 == 1 else 0] = True
    assert components(mask).max() == 1


def test_specks_take_the_label_of_what_is_around_them():
    """A small piece of a region falls back to the region around it, an outermost one to background."""
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[2:12, 2:12, 2:12] = 2
    labels[4:9, 4:9, 4:9] = 1
    labels[5, 5, 5] = 3
    labels[16, 16, 16] = 2
    labels[10, 10, 10] = 1
    cleaned = drop_specks(labels, toy_spec(regions=toy_regions(10.0)), voxel_volume=2.0)
    assert cleaned[16, 16, 16] == 0
    assert cleaned[10, 10, 10] == 2
    assert cleaned[5, 5, 5] == 1
    assert np.count_nonzero(cleaned != labels) == 3
    np.testing.assert_array_equal(drop_specks(labels, toy_spec(), 2.0), labels)


def test_every_region_has_its_own_smallest_volume():
    """A piece of the outermost region that is too small goes with all inside it."""
    wt, tc, et = toy_regions()
    spec = toy_spec(regions=(replace(wt, min_volume_mm3=30.0), tc, et))
    labels = np.zeros((12, 12, 12), np.uint8)
    labels[1:5, 1:5, 1:5] = 2
    labels[2, 2, 2] = 3
    labels[8:10, 8:10, 8:10] = 2
    labels[8, 8, 8] = 3
    cleaned = drop_specks(labels, spec, voxel_volume=1.0)
    np.testing.assert_array_equal(cleaned[:6], labels[:6])
    assert not cleaned[6:].any()


def test_the_smallest_volume_is_in_mm3():
    """Five voxels of 2 mm3 reach 10 mm3 and stay; four do not."""
    labels = np.zeros((12, 3, 3), np.uint8)
    labels[0:5, 0, 0] = 2
    labels[7:11, 2, 2] = 2
    cleaned = drop_specks(labels, toy_spec(regions=toy_regions(10.0)), voxel_volume=2.0)
    assert cleaned[0:5, 0, 0].all()
    assert not cleaned[7:11].any()


@pytest.mark.parametrize(
    "changes",
    [
        {"regions": (Region("A", (1, 2)), Region("B", (2, 3)))},
        {"regions": (Region("A", (1, 2, 3)),)},
        {"regions": (Region("A", (9,)),)},
        {"regions": ()},
        {"labels": (Label(1, "a"), Label(1, "b"))},
        {"reference": "dwi"},
        {"tile": (15, 16, 16)},
        {"overlap": 0.9},
        {"spacing": (0.0, 1.0, 1.0)},
        {"activation": "softmax"},
        {"channels": (0, 1, 2, 3)},
        {"modalities": ()},
        {"regions": toy_regions(float("nan"))},
    ],
    ids=str,
)
def test_a_spec_that_contradicts_itself_cannot_be_made(changes):
    """Contradictions are refused where the spec is built, not where a scan meets them."""
    with pytest.raises(BundleInvalid, match="E_SPEC"):
        toy_spec(**changes)
