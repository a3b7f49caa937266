"""The bundle of ``make demo``, a trained network, on scans that it never saw and on real ones."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from brainseg_runtime.geometry import Geometry
from brainseg_runtime.overlap import dice
from brainseg_runtime.scans import find_scans, read
from brainseg_runtime.segmenter import load
from brainseg_runtime.volume import Volume
from toys import ORIENTATIONS, oblique_affine

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "bundles" / "demo"
SPELLING = ("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y")
SPELLING += ("qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units")

pytestmark = pytest.mark.skipif(not BUNDLE.is_dir(), reason="no bundles/demo: make demo makes it")


@pytest.fixture(scope="module")
def segmenter():
    """The demo's model."""
    with load(BUNDLE, "ort") as opened:
        yield opened


@pytest.fixture(scope="module")
def unseen(segmenter):
    """A synthetic scan that training never saw, placed obliquely and with unequal spacings."""
    volume = read(find_scans(ROOT / "demo" / "unseen", segmenter.spec).scans[0])
    affine = oblique_affine((2.0, 2.5, 1.8))
    return Volume(volume.data, Geometry(volume.geometry.shape, affine))


@pytest.fixture(scope="module")
def expected(segmenter, unseen):
    """The mask of that scan as it was stored."""
    return segmenter.segment(unseen).labels


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=str)
def test_the_same_mask_from_all_48_axis_orders_and_flips(segmenter, unseen, expected, orientation):
    """A trained network, an anisotropic, oblique, asymmetric scan: one mask in the patient."""
    data = np.asfortranarray(orientation.apply(unseen.data))
    found = segmenter.segment(Volume(data, orientation.geometry(unseen.geometry)))
    assert (expected > 0).sum() > 1000
    np.testing.assert_array_equal(orientation.undo(found.labels), expected)


def test_unseen_scans_are_segmented_well(segmenter):
    """Mean Dice of at least 0.90 for every region on scans that training never saw."""
    spec = segmenter.spec
    scores = []
    for scan in find_scans(ROOT / "demo" / "unseen", spec).scans:
        truth = np.asarray(nibabel.load(scan.truth).dataobj)
        found = segmenter.segment(read(scan))
        scores.append([dice(found.mask(r.name), np.isin(truth, r.labels)) for r in spec.regions])
    assert (np.mean(scores, axis=0) >= 0.90).all(), np.mean(scores, axis=0)


def infer(*arguments):
    code = "from brainseg_runtime.cli import infer_main; infer_main()"
    command = [sys.executable, "-c", code, *map(str, arguments), "-m", str(BUNDLE)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("patient", ["TCGA-DU-7294", "TCGA-FG-6692"])
def test_a_real_scan_comes_back_in_its_t1c_files_own_geometry(data_root, tmp_path, patient):
    """Shape and every geometry field of the header equal the T1c file's, whose codes differ from the rest."""
    folder = data_root / "tcga-lgg" / patient / "raw_bet"
    done = infer(folder, "-o", tmp_path)
    assert done.returncode == 0, done.stderr
    (mask,) = tmp_path.glob("*_seg.nii.gz")
    (source,) = folder.glob("*t1c*")
    found, wanted = nibabel.load(mask).header, nibabel.load(source).header
    assert found.get_data_shape() == wanted.get_data_shape() == (240, 240, 155)
    np.testing.assert_array_equal(found["pixdim"][:4], wanted["pixdim"][:4])
    for name in SPELLING:
        np.testing.assert_array_equal(found[name], wanted[name])
    contents = json.loads(next(tmp_path.glob("*_seg.json")).read_text())
    assert {"read", "prepare", "infer", "restore", "write"} <= set(contents["seconds"])
    assert contents["peak_memory_mb"] < 2000


def test_series_on_different_grids_are_refused(data_root, tmp_path):
    """Status 3, the code, both files, and how far they are apart."""
    done = infer(data_root / "tcga-lgg" / "TCGA-FG-6692" / "native", "-o", tmp_path / "out")
    assert done.returncode == 3
    assert "E_GEOMETRY_MISMATCH" in done.stderr
    assert "_fla.nii.gz" in done.stderr
    assert "_t1c.nii.gz" in done.stderr
    assert "62.73 mm away" in done.stderr
    assert not list((tmp_path / "out").glob("*_seg*"))
