"""What a user gives: NIfTI or DICOM, told apart by content; grids that differ, resampled when asked."""

import json
import os
import subprocess
import sys

import nibabel
import numpy as np
import pydicom
import pytest
from brainseg_runtime.dicom.series import pseudonym
from brainseg_runtime.errors import ScanRefused, UsageRefused
from brainseg_runtime.geometry import Geometry
from brainseg_runtime.inputs import find, kind_of, result_kinds
from brainseg_runtime.nifti import write_image
from brainseg_runtime.resample import resample
from brainseg_runtime.scans import find_scans, onto
from dicoms import Grid, save, study, truth, uid
from toys import toy_bundle, toy_spec, toy_volume, write_scan

SPEC = toy_spec()
SMALL = Grid(rows=24, columns=20, slices=16)


def brainseg(*arguments):
    """The command in a process of its own: (status, stdout, stderr)."""
    code = "from brainseg_runtime.cli import main; main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout, done.stderr


def test_inputs_are_told_apart_by_content(tmp_path):
    """DICOM by its mark, whatever its name; NIfTI by its name; both at once are refused."""
    save(study(grid=SMALL), tmp_path / "dicom")
    write_scan(tmp_path / "nifti" / "p0", toy_volume())
    assert kind_of([tmp_path / "dicom"]) == "dicom"
    assert kind_of([tmp_path / "nifti"]) == "nifti"
    assert kind_of([next((tmp_path / "dicom").iterdir())]) == "dicom"
    with pytest.raises(UsageRefused, match="E_INPUT_MIXED"):
        kind_of([tmp_path])
    assert [scan.id for scan in find([tmp_path], SPEC, "nifti").scans] == ["p0"]
    assert len(find([tmp_path / "dicom"], SPEC, "dicom").scans) == 1


def test_results_suit_what_they_refer_to():
    """SEG and report are the default of DICOM and impossible for NIfTI; a report needs a SEG."""
    assert result_kinds(None, "dicom") == ("dicom-seg", "dicom-sr")
    assert result_kinds(None, "nifti") == ()
    assert result_kinds("nifti", "dicom") == ()
    assert result_kinds("dicom-sr, dicom-labelmap", "dicom") == ("dicom-labelmap", "dicom-sr")
    for asked, kind in (("dicom-seg", "nifti"), ("dicom-sr", "dicom"), ("rtstruct", "dicom")):
        with pytest.raises(UsageRefused, match="E_USAGE"):
            result_kinds(asked, kind)


def test_a_study_goes_through_the_command_line(tmp_path):
    """A folder of DICOM in, mask, SEG, report and JSON out; the run says that it was DICOM."""
    save(study(grid=SMALL), tmp_path / "study")
    bundle = toy_bundle(tmp_path / "bundle").folder
    out = tmp_path / "out"
    status, said, err = brainseg(
        "infer", tmp_path / "study", "-m", bundle, "-o", out, "--engine", "ort", "--json"
    )
    assert (status, err) == (0, "")
    start, done = (json.loads(line) for line in said.splitlines())
    assert start["input"] == "dicom"
    contents = json.loads((out / f"{done['scan']}_seg.json").read_text())
    assert set(contents["attachments"]) == {"dicom-seg", "dicom-sr"}
    assert [entry["number"] for entry in contents["dicom"]["series"]] == ["3", "9", "4", "5"]
    seg = pydicom.dcmread(out / contents["attachments"]["dicom-seg"]["file"])
    mask = np.asarray(nibabel.load(done["mask"]).dataobj)
    assert seg.pixel_array.sum() == np.count_nonzero(mask)
    status, said, _ = brainseg("explain", tmp_path / "study", "-m", bundle)
    assert status == 0
    assert "read: t1 from series 3, t1c from series 9, t2 from series 4, flair from series 5" in said


def test_a_file_that_cannot_be_read_does_not_end_a_run(tmp_path):
    """The other study is done, the status says that something was refused, and nothing names the patient."""
    save(study(grid=SMALL), tmp_path / "in" / "CANARY-one")
    other = save(study(grid=SMALL, study="other"), tmp_path / "in" / "CANARY-other")
    (other / "CANARY-link").symlink_to(tmp_path)
    (other / "CANARY-broken-link").symlink_to(tmp_path / "none")
    os.mkfifo(tmp_path / "in" / "CANARY-fifo")
    bundle = toy_bundle(tmp_path / "bundle").folder
    out = tmp_path / "out"
    given = (tmp_path / "in", "-m", bundle, "-o", out, "--engine", "ort", "--json", "--report")
    status, said, err = brainseg("infer", *given)
    assert (status, err) == (4, "")
    _, *failed, done = (json.loads(line) for line in said.splitlines())
    codes = {one["scan"]: one["code"] for one in failed}
    assert codes == {
        pseudonym("study", uid("study", "other")): "E_INPUT_MISSING",
        "file-00001": "E_NOT_FILE",
    }
    assert done["scan"] == pseudonym("study", uid("study", "study"))
    assert "CANARY" not in said
    texts = [path for path in out.iterdir() if path.suffix in (".json", ".csv", ".html")]
    assert len(texts) > 3
    assert [path for path in texts if "CANARY" in path.read_text()] == []


def test_rules_and_grids_that_do_not_suit_are_usage(tmp_path):
    """Rules for NIfTI, and a grid of no modality, end a run with status 2."""
    write_scan(tmp_path / "p0", toy_volume())
    for options in ({"rules": tmp_path / "x.toml"}, {"resample_to": "pd"}):
        with pytest.raises(UsageRefused, match="E_USAGE") as refused:
            find([tmp_path / "p0"], SPEC, "nifti", **options)
        assert refused.value.exit_status == 2


def on_grid(geometry, gain=1.0):
    """The phantom at the voxels of a grid, (I, J, K) float32."""
    index = np.stack(np.meshgrid(*map(np.arange, geometry.shape), indexing="ij"), axis=-1)
    ras = index @ geometry.affine[:3, :3].T + geometry.affine[:3, 3]
    return gain * truth(ras * [-1, -1, 1]).astype(np.float32)


def turned(shape, spacing, degrees, centre=(0, 0, 0)):
    """A grid turned about the third axis, around a centre."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.diag(spacing)
    affine[:3, 3] = np.array(centre) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Geometry(shape, affine)


def test_resampling_goes_through_the_patient():
    """A linear function comes back exactly on any grid inside; outside is background."""
    source = turned((40, 44, 30), (1.0, 1.2, 2.0), 20)
    target = turned((18, 20, 22), (1.3, 0.8, 1.1), -35)
    index = np.stack(np.meshgrid(*map(np.arange, source.shape), indexing="ij"), axis=-1)
    plane = np.array([3.0, -2.0, 5.0])
    ras = index @ source.affine[:3, :3].T + source.affine[:3, 3]
    out = np.empty(target.shape, np.float32, order="F")
    assert resample(np.asfortranarray((ras @ plane).astype(np.float32)), source, target, out) == 1.0
    index = np.stack(np.meshgrid(*map(np.arange, target.shape), indexing="ij"), axis=-1)
    np.testing.assert_allclose(
        out, (index @ target.affine[:3, :3].T + target.affine[:3, 3]) @ plane, atol=1e-3
    )
    far = turned((18, 20, 22), (1.3, 0.8, 1.1), 0, centre=(500, 0, 0))
    data = np.full(source.shape, 7.0, np.float32, order="F")
    data[10:20] = 90
    assert resample(data, source, far, out) == 0.0
    assert (out == 7.0).all()


def test_nifti_on_other_grids_is_resampled_only_when_asked(tmp_path):
    """Refused by default; with --resample-to on that modality's grid, and the record says from where."""
    grid, other = turned((40, 44, 30), (1.0, 1.0, 2.0), 0), turned((44, 44, 40), (1.1, 1.1, 1.6), 9)
    folder = tmp_path / "p0"
    folder.mkdir()
    for name, geometry in (("t1n", grid), ("t1c", grid), ("t2w", other), ("t2f", grid)):
        write_image(folder / f"p0-{name}.nii.gz", np.asfortranarray(on_grid(geometry)), geometry)
    found = find_scans(folder, SPEC)
    with pytest.raises(ScanRefused, match="E_GEOMETRY_MISMATCH"):
        found.scans[0].read()
    volume = onto(found, "t1c").scans[0].read()
    assert volume.geometry.shape == grid.shape
    assert set(volume.record["resampled"]) == {"t2"}
    inner = (slice(6, -6),) * 3
    apart = np.abs(volume.data[..., 2] - volume.data[..., 1])[inner]
    assert apart.max() < 25  # the soft edges of the spheres, between voxels
    assert apart.mean() < 1
    assert onto(found, "t2").scans[0].read().geometry.shape == other.shape
