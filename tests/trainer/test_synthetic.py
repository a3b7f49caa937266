"""Synthetic scans: reproducible, plausible, and beyond any threshold."""

import numpy as np
import pytest
from brainseg_runtime.scans import find_scans, read
from brainseg_trainer.config import load
from brainseg_trainer.synthetic import synthesise
from brainseg_trainer.task import glioma_spec

SCANS = 6
REGIONS = {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)}
MODALITIES = ("t1", "t1c", "t2", "flair")


@pytest.fixture(scope="module")
def scans():
    return [synthesise(11, index) for index in range(SCANS)]


def best_dice(values, mask):
    """The highest Dice that any threshold on ``values``, upwards or downwards, reaches for ``mask``."""
    order = np.argsort(values, kind="stable")
    best = 0.0
    for direction in (order, order[::-1]):
        hits = np.cumsum(mask[direction])
        taken = np.arange(1, len(hits) + 1)
        # A threshold cannot part equal values.
        ends = np.append(np.diff(values[direction]) != 0, True)
        best = max(best, float((2 * hits / (taken + mask.sum()))[ends].max()))
    return best


def test_a_seed_and_an_index_name_one_scan(scans):
    """The same two numbers give the same scan; another index or another seed gives another."""
    again, other = synthesise(11, 2), synthesise(12, 2)
    np.testing.assert_array_equal(again.data, scans[2].data)
    np.testing.assert_array_equal(again.labels, scans[2].labels)
    np.testing.assert_array_equal(again.geometry.affine, scans[2].geometry.affine)
    assert (scans[1].data != scans[2].data).any()
    assert (other.data != scans[2].data).any()


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("modality", MODALITIES)
def test_no_threshold_finds_the_tumour(scans, modality, region):
    """On one contrast, even the best threshold of each single scan stays under a mean Dice of 0.7."""
    reached = []
    for scan in scans:
        brain = scan.data[..., 0] > 0
        values = scan.data[brain][:, MODALITIES.index(modality)]
        reached.append(best_dice(values, np.isin(scan.labels[brain], REGIONS[region])))
    assert np.mean(reached) < 0.7


def test_every_scan_holds_a_plausible_tumour(scans):
    """Every label is there, in amounts that can be learnt and scored, and inside the brain."""
    for scan in scans:
        ml = np.bincount(scan.labels.ravel(), minlength=4) * scan.geometry.voxel_volume / 1000
        assert ml[1] > 1
        assert 5 < ml[2] < 250
        assert ml[3] > 3
        assert (scan.data[scan.labels > 0] > 0).all()


def test_the_skull_is_stripped(scans):
    """Outside the brain every contrast is exactly 0, inside none is, and the brain has a brain's size."""
    for scan in scans:
        brain = scan.data[..., 0] > 0
        for c in range(4):
            np.testing.assert_array_equal(scan.data[..., c] > 0, brain)
        assert 1000 < brain.sum() * scan.geometry.voxel_volume / 1000 < 2200
        for edge in (brain[0], brain[-1], brain[:, 0], brain[:, -1]):
            assert not edge.any()


def test_files_are_found_and_read_as_brats_scans(scans_folder):
    """What is written is found by the runtime under BraTS names, complete, on one LPS grid, with truth."""
    spec = glioma_spec(load("demo"), (16, 16, 16))
    found = find_scans(scans_folder, spec)
    assert [scan.id for scan in found.scans] == [f"synthetic-7-{n:04d}" for n in range(4)]
    assert not found.refused
    volume = read(found.scans[1])
    made = synthesise(7, 1)
    assert volume.geometry.orientation == "LPS"
    np.testing.assert_array_equal(volume.data, made.data.astype(np.float32))
    np.testing.assert_allclose(volume.geometry.affine, made.geometry.affine, atol=1e-4)
    assert found.scans[1].truth.name == "synthetic-7-0001-seg.nii.gz"
