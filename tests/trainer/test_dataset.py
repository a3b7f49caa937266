"""From scans to tiles: what is refused, what is held out, and what a step sees."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from brainseg_runtime.errors import ScanRefused
from brainseg_runtime.geometry import Geometry
from brainseg_runtime.nifti import read_labels, write_labels
from brainseg_runtime.preprocess import prepare
from brainseg_runtime.scans import Scan, read
from brainseg_trainer.config import Loss
from brainseg_trainer.dataset import draw_batch, find_training_scans, patient_of, prepare_examples, split
from brainseg_trainer.distances import signed_distances
from brainseg_trainer.task import glioma_spec, label_table, masks

from .conftest import quiet


@pytest.fixture
def spec(small_config):
    return glioma_spec(small_config, (8, 8, 8))


@pytest.fixture
def scans(tmp_path, scans_folder):
    """A copy of the scans that a test may spoil."""
    return Path(shutil.copytree(scans_folder, tmp_path / "scans"))


@pytest.fixture(scope="module")
def examples(scans_folder, small_config, tmp_path_factory):
    spec = glioma_spec(small_config, (8, 8, 8))
    source = find_training_scans(scans_folder, spec)
    return prepare_examples(source, source.scans, spec, tmp_path_factory.mktemp("cache"), quiet)


def rewrite_truth(folder, change, geometry=lambda geometry: geometry):
    """Change every truth image of a folder."""
    for path in folder.glob("*/*-seg.nii.gz"):
        labels, grid = read_labels(path)
        write_labels(path, change(labels), geometry(grid))


def test_training_sees_what_the_runtime_prepares(examples, scans_folder, small_config, spec):
    """An example's data are exactly the runtime's ``prepare`` of that scan, and its labels lie on them."""
    scan = find_training_scans(scans_folder, spec).scans[2]
    prepared = prepare(read(scan), spec)
    np.testing.assert_array_equal(examples[2].data, prepared.data)
    assert examples[2].labels.shape == prepared.data.shape[:3]
    assert set(np.unique(examples[2].labels)) == {0, 1, 2, 3}
    assert (examples[2].labels[tuple(examples[2].tumour.T)] > 0).all()


def test_a_batch_depends_on_seed_and_step_alone(examples, spec, small_config):
    """A step's batch is the same in any order of asking, and differs from the next step's."""
    first = draw_batch(examples, spec, small_config, 3)
    draw_batch(examples, spec, small_config, 9)
    again = draw_batch(examples, spec, small_config, 3)
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert (draw_batch(examples, spec, small_config, 4)[0] != first[0]).any()
    other = draw_batch(examples, spec, replace(small_config, seed=6), 3)
    assert (other[0] != first[0]).any()


def test_a_batch_is_tiles_with_nested_masks(examples, spec, small_config):
    """Tiles have the configured size, beyond the scan they are background, and ET is in TC is in WT."""
    wide = replace(small_config, data=replace(small_config.data, tile=(64, 32, 32)))
    images, truth = draw_batch(examples, spec, wide, 0, altered=False)
    assert images.shape == (2, 64, 32, 32, 4)
    assert images.dtype == truth.dtype == np.float32
    assert truth.shape == (2, 64, 32, 32, 3)
    assert (truth[..., 2] <= truth[..., 1]).all()
    assert (truth[..., 1] <= truth[..., 0]).all()
    assert (images[:, 45:] == 0).all()


def test_tiles_are_centred_on_tumour_as_often_as_asked(examples, spec, small_config):
    """With the tumour fraction at 1, every tile holds tumour."""
    config = replace(small_config, data=replace(small_config.data, tile=(16, 16, 16), tumour=1.0))
    for step in range(10):
        _, truth = draw_batch(examples, spec, config, step)
        assert (truth[..., 0].sum((1, 2, 3)) > 0).all()


def test_every_scan_is_seen_before_any_is_seen_again(examples, spec, small_config):
    """Two steps of two tiles show four scans once each."""
    whole = replace(small_config, data=replace(small_config.data, tile=(48, 64, 48), tumour=0.0))
    tiles = np.concatenate([draw_batch(examples, spec, whole, s, altered=False)[0] for s in (0, 1)])
    sums = sorted(float(tile.sum(dtype=np.float64)) for tile in tiles)
    assert sums == pytest.approx(sorted(float(e.data.sum(dtype=np.float64)) for e in examples), abs=1)


def patients_of(scans):
    return {scan.id: patient_of(scan) for scan in scans}


def test_the_split_keeps_patients_together():
    """Visits of one BraTS patient fall on one side, and a seed names one split."""
    names = [f"BraTS-GLI-{patient:05d}-{visit:03d}" for patient in range(10) for visit in range(3)]
    scans = [Scan(name, (), "t1c") for name in names]
    training, held_out = split(scans, patients_of(scans), 0.2, 0)
    assert {s.id for s in training} | {s.id for s in held_out} == set(names)
    sides = [{re.sub(r"-\d{3}$", "", s.id) for s in side} for side in (training, held_out)]
    assert not sides[0] & sides[1]
    assert len(sides[1]) == 2
    assert split(scans, patients_of(scans), 0.2, 0) == (training, held_out)
    assert split(scans, patients_of(scans), 0.2, 1) != (training, held_out)


def test_too_few_patients_are_refused():
    """One patient cannot be trained on and held out, however many visits there are."""
    scans = [Scan(f"BraTS-GLI-00001-{visit:03d}", (), "t1c") for visit in range(3)]
    with pytest.raises(ScanRefused) as refusal:
        split(scans, patients_of(scans), 0.2, 0)
    assert refusal.value.code == "E_TOO_FEW_SCANS"


def test_a_scan_without_truth_is_refused(scans, spec):
    """A missing label image is named before anything is computed."""
    (scans / "synthetic-7-0002" / "synthetic-7-0002-seg.nii.gz").unlink()
    with pytest.raises(ScanRefused, match="synthetic-7-0002") as refusal:
        find_training_scans(scans, spec)
    assert refusal.value.code == "E_TRUTH_MISSING"


def test_an_incomplete_scan_is_refused(scans, spec):
    """A scan that lacks a modality stops the run with the runtime's own refusal."""
    (scans / "synthetic-7-0001" / "synthetic-7-0001-t2f.nii.gz").unlink()
    with pytest.raises(ScanRefused) as refusal:
        find_training_scans(scans, spec)
    assert refusal.value.code == "E_MODALITY_MISSING"


def test_labels_of_brats_2021_are_recognised(scans, spec):
    """Where 4 occurs and 3 never does, 4 is enhancing tumour."""
    rewrite_truth(scans, lambda labels: np.where(labels == 3, 4, labels).astype(np.uint8))
    source = find_training_scans(scans, spec)
    scan = source.scans[0]
    truth = source.truth(scan, read(scan).geometry)
    assert set(np.unique(truth)) == {0, 1, 2, 3}


@pytest.mark.parametrize("values", [{0, 1, 2, 3, 4}, {0, 5}, {0, 255}], ids=str)
def test_other_label_values_are_refused(spec, values):
    """Values that no scheme explains are refused; 4 beside 3 means something other than ET."""
    with pytest.raises(ScanRefused) as refusal:
        label_table(values, spec)
    assert refusal.value.code == "E_LABELS"


def test_a_truth_on_another_grid_is_refused(scans, spec, tmp_path):
    """A truth of the right shape that lies elsewhere is not taken for the scan's."""
    shift = np.eye(4)
    shift[:3, 3] = 4.0
    rewrite_truth(scans, lambda labels: labels, lambda g: Geometry(g.shape, shift @ g.affine))
    source = find_training_scans(scans, spec)
    with pytest.raises(ScanRefused, match=r"6\.93 mm") as refusal:
        prepare_examples(source, source.scans, spec, tmp_path / "cache", quiet)
    assert refusal.value.code == "E_GEOMETRY_MISMATCH"


def test_masks_are_unions_of_labels(spec):
    """Each region's mask holds exactly the voxels of its labels."""
    made = masks(np.array([0, 1, 2, 3], np.uint8), spec)
    np.testing.assert_array_equal(made, [[0, 0, 0], [1, 1, 0], [1, 0, 0], [1, 1, 1]])


def test_the_boundary_loss_is_given_distances(examples, spec, small_config):
    """After the masks stand the regions' distances, whose weight grows from nothing to all of them."""
    steps = small_config.training.steps
    config = replace(small_config, loss=Loss("boundary"))
    for step in (0, steps):
        _, truth = draw_batch(examples, spec, config, step)
        plain = draw_batch(examples, spec, small_config, step)[1]
        np.testing.assert_array_equal(truth[..., :3], plain)
        expected = [signed_distances(tile, small_config.data.spacing) for tile in plain]
        np.testing.assert_allclose(truth[..., 3:], np.multiply(expected, step / steps), rtol=1e-6)


def test_a_model_that_tells_types_is_given_the_type(examples, spec, small_config):
    """After the masks stand the types: 1 for the scan's own where there is tumour, 0 everywhere else."""
    typed = replace(spec, types=("glioma", "meningioma"))
    known = [replace(example, kind="meningioma") for example in examples]
    _, truth = draw_batch(known, typed, small_config, 0)
    np.testing.assert_array_equal(truth[..., 4], truth[..., 0])
    assert not truth[..., 3].any()
    assert not draw_batch(examples, typed, small_config, 0)[1][..., 3:].any()


def test_workers_share_a_batch(examples, spec, small_config):
    """The shares of two workers are the batch of one."""
    whole = draw_batch(examples, spec, small_config, 3)
    parts = [draw_batch(examples, spec, small_config, 3, share=range(n, n + 1)) for n in range(2)]
    for n in range(2):
        np.testing.assert_array_equal(np.concatenate([part[n] for part in parts]), whole[n])


def test_softmax_models_are_given_a_channel_per_label(examples, spec, small_config):
    """One-hot labels with the background first, each voxel in one channel."""
    soft = replace(spec, activation="softmax", channels=(0, 1, 2, 3))
    _, truth = draw_batch(examples, soft, small_config, 0)
    assert (truth.sum(axis=-1) == 1).all()
    regions = draw_batch(examples, spec, small_config, 0)[1]
    np.testing.assert_array_equal(truth[..., 3], regions[..., 2])
    np.testing.assert_array_equal(1 - truth[..., 0], regions[..., 0])
