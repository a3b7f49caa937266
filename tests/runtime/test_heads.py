"""An image that was not skull-stripped is told from one that was."""

import json
from dataclasses import replace

import numpy as np
import pytest
from brainseg_runtime.batch import run
from brainseg_runtime.heads import BRAIN_ML, foreground_ml, whole_head
from brainseg_runtime.nifti import read_image
from brainseg_runtime.scans import find_scans
from brainseg_runtime.segmenter import Segmenter
from brainseg_runtime.volume import Volume
from toys import toy_engine, toy_geometry, toy_spec, toy_volume, write_scan


def alone(image):
    return Volume(image.data[..., None], image.geometry)


@pytest.mark.data
def test_real_heads_and_brains_are_told_apart(data_root):
    """Eight stripped images and four with the head still on, far from the limit on both sides."""
    stripped = [path for path in (data_root / "tcga-lgg").rglob("*_bet.nii.gz") if "raw_bet" in path.parts]
    heads = list((data_root / "tcga-lgg").glob("*/native/*.nii.gz"))
    assert (len(stripped), len(heads)) == (8, 4)
    for path in stripped:
        assert foreground_ml(alone(read_image(path))) < 0.8 * BRAIN_ML
    for path in heads:
        assert foreground_ml(alone(read_image(path))) > 2 * BRAIN_ML


@pytest.mark.data
def test_an_anisotropic_head_is_seen_too(data_root):
    """The T1c of 6.5 mm slices with its skull, which is no NIfTI, read by SimpleITK."""
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed (CI installs it)")
    for path in (data_root / "pyradiomics-brain").glob("*_image.nrrd"):
        image = sitk.ReadImage(str(path))
        data = np.asfortranarray(sitk.GetArrayFromImage(image).transpose(2, 1, 0).astype(np.float32))
        affine = np.diag([*image.GetSpacing(), 1.0])
        volume = Volume(data[..., None], replace(toy_geometry(data.shape), affine=affine))
        assert whole_head(volume), foreground_ml(volume)


@pytest.mark.parametrize(("anatomy", "warned"), [("brain", True), ("head", False)])
def test_the_warning_stands_in_the_record(tmp_path, anatomy, warned):
    """Where the model wants a brain and gets more than one has; not where it was trained on heads."""
    volume = toy_volume(toy_geometry((60, 60, 60), spacing=4.0), background=0.0)
    spec = toy_spec(anatomy=anatomy)
    write_scan(tmp_path / "toy", volume)
    list(run(Segmenter(spec, toy_engine(spec)), find_scans(tmp_path / "toy", spec), tmp_path / "out"))
    warnings = json.loads((tmp_path / "out" / "toy_seg.json").read_text()).get("warnings", [])
    assert any("whole head" in warning for warning in warnings) == warned
