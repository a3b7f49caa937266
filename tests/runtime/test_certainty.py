"""How sure a network is: maps that agree with the mask, ranges that hold the volume."""

import json

import nibabel
import numpy as np
import pytest
from brainseg_runtime.batch import Done, Skipped, run
from brainseg_runtime.certainty import Survey, log_odds
from brainseg_runtime.geometry import Geometry
from brainseg_runtime.labels import decide
from brainseg_runtime.scans import find_scans
from brainseg_runtime.segmenter import Segmenter
from brainseg_runtime.spec import Region
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import toy_engine, toy_geometry, toy_spec, toy_volume, write_scan

SOFTMAX = {"activation": "softmax", "channels": (0, 2, 1, 3)}


def segmented(spec, volume):
    with Segmenter(spec, toy_engine(spec)) as segmenter:
        return segmenter.segment(volume, probabilities=True)


@settings(deadline=None)
@given(threshold=st.floats(0.05, 0.95), seed=st.integers(0, 99))
def test_maps_agree_with_the_mask_at_the_threshold(threshold, seed):
    """A byte is at or above 255 times the threshold exactly where the mask is, whatever the threshold."""
    regions = [Region(name, labels, threshold) for name, labels in toy_spec().region_labels.items()]
    spec = toy_spec(regions=tuple(regions))
    logits = np.random.default_rng(seed).normal(0, 2, (6, 7, 8, 3)).astype(np.float32)
    logits.flat[:5] = np.log(threshold / (1 - threshold))
    survey = Survey(spec, keep_maps=True)
    labels = survey(logits)
    np.testing.assert_array_equal(labels, decide(logits, spec))
    (maps,) = survey._slabs
    for r, region in enumerate(spec.regions):
        np.testing.assert_array_equal(maps[..., r] >= 255 * threshold, np.isin(labels, region.labels))
    assert (np.diff(maps.astype(int), axis=-1) <= 0).all(), (
        "an inner region is never likelier than an outer one"
    )


def test_softmax_probabilities_of_a_region_are_the_sum_of_its_labels():
    """Against softmax written down again, in float64."""
    spec = toy_spec(**SOFTMAX)
    logits = np.random.default_rng(0).normal(0, 4, (5, 6, 7, 4)).astype(np.float32)
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(-1, keepdims=True)
    for region, odds in zip(spec.regions, log_odds(logits, spec), strict=True):
        expected = p[..., np.isin(spec.channels, region.labels)].sum(-1)
        np.testing.assert_allclose(1 / (1 + np.exp(-odds.astype(np.float64))), expected, atol=1e-6)


@pytest.mark.parametrize("changes", [{}, SOFTMAX], ids=["sigmoid", "softmax"])
@pytest.mark.parametrize("codes", ["LPS", "RAS", "SAL", "IPR"])
def test_maps_lie_on_the_scans_own_grid(changes, codes):
    """In every storage orientation, at another spacing than the network's; nothing outside the brain."""
    spec = toy_spec(**changes)
    turned = nibabel.orientations.axcodes2ornt(codes)
    affine = np.diag([1.3, 1.1, 0.9, 1.0]) @ nibabel.orientations.inv_ornt_aff(turned, (20, 24, 18))
    shape = tuple(int((20, 24, 18)[axis]) for axis in turned[:, 0].argsort().argsort())
    volume = toy_volume(Geometry(shape, affine))
    result = segmented(spec, volume)
    maps = result.probabilities
    assert maps.shape == (*volume.geometry.shape, 3)
    outside = (volume.data == 0).all(-1)
    for r, region in enumerate(spec.regions):
        mask = np.isin(result.labels, region.labels)
        if not changes:
            np.testing.assert_array_equal(maps[..., r] >= 127.5, mask)
        else:  # the largest of four probabilities is at least a quarter
            assert maps[mask, r].min() >= 63
        ranges = result.record["volume_ranges_ml"][region.name]
        assert ranges["surely_ml"] <= ranges["decided_ml"] <= ranges["perhaps_ml"]
    corner = maps[outside]
    assert (corner == 0).mean() > 0.1


def test_the_range_holds_the_volume(tmp_path):
    """Without specks to drop, the decided volume is that of the mask."""
    result = segmented(toy_spec(), toy_volume(toy_geometry(spacing=1.5)))
    for region, ml in result.volumes_ml().items():
        ranges = result.record["volume_ranges_ml"][region]
        assert ranges["decided_ml"] == pytest.approx(ml, abs=1e-3)
        assert ranges["surely_ml"] <= ml + 1e-3 <= ranges["perhaps_ml"] + 2e-3


def test_maps_are_written_beside_the_mask_and_count_as_asked_for(tmp_path):
    """One map a region, named in the JSON; a scan that lacks them is done again, one that has more is not."""
    write_scan(tmp_path / "scans" / "p0", toy_volume())
    spec = toy_spec()
    with Segmenter(spec, toy_engine(spec)) as segmenter:
        found = find_scans(tmp_path / "scans", spec)
        kinds = lambda *asked, **o: [  # noqa: E731
            type(x) for x in run(segmenter, found, tmp_path / "out", attachments=asked, **o)
        ]
        path = tmp_path / "out" / "p0_prob.nii.gz"
        assert kinds() == [Done]
        assert not path.exists()
        assert kinds("probabilities") == [Done]
        assert kinds("probabilities") == [Skipped]
        assert kinds() == [Skipped]
        image, mask = nibabel.load(path), nibabel.load(tmp_path / "out" / "p0_seg.nii.gz")
        contents = json.loads((tmp_path / "out" / "p0_seg.json").read_text())
        assert contents["attachments"]["probabilities"]["maps"] == ["WT", "TC", "ET"]
        assert image.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(image.affine, mask.affine)
        np.testing.assert_array_equal(np.asarray(image.dataobj)[..., 0] > 127, np.asarray(mask.dataobj) > 0)
        path.write_bytes(b"damaged")
        assert kinds("probabilities") == [Done]
        assert kinds(overwrite=True) == [Done]
        assert not path.exists(), "maps of an earlier result do not stand beside another mask"
