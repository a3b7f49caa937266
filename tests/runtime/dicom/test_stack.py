"""Every series is read right in the patient's space, or refused with its code; nothing in between."""

import subprocess
from dataclasses import replace

import highdicom
import numpy as np
import pydicom
import pytest
from brainseg_runtime.dicom import pixels as pixels_chapter
from brainseg_runtime.dicom.archive import files_in
from brainseg_runtime.dicom.pixels import load
from brainseg_runtime.dicom.series import _order, group
from brainseg_runtime.dicom.stack import RAS_FROM_LPS, fill, plan
from brainseg_runtime.errors import ScanRefused
from dicoms import SAGITTAL, Grid, Made, save, series, truth
from hostile.dicom import FAULTS, mutant, shifted
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)


def read(folder):
    """(series, plan, voxels) of the one series in a folder."""
    (study,) = group(files_in(folder)).studies
    assert study.refusal is None, study.refusal
    (one,) = study.series
    way = plan(one)
    voxels = np.empty(way.geometry.shape, np.float32, order="F")
    fill(voxels, one, way, load(one).datasets)
    return one, way, voxels


def misplaced(way, voxels, gain=1.3):
    """The largest difference from what the phantom is at each voxel's own position."""
    index = np.stack(np.meshgrid(*map(np.arange, voxels.shape), indexing="ij"), axis=-1)
    ras = index @ way.geometry.affine[:3, :3].T + way.geometry.affine[:3, 3]
    return np.abs(voxels - truth(ras @ RAS_FROM_LPS[:3, :3], gain)).max()


GRIDS = {
    "axial": Grid(degrees=(0, 0, 0)),
    "oblique": Grid(),
    "sagittal": Grid(start=SAGITTAL, degrees=(0, 0, 0)),
    "sagittal oblique": Grid(start=SAGITTAL),
    "negated row cosine": Grid(start=np.diag([-1.0, 1, 1])),
    "negated column cosine": Grid(start=np.diag([1.0, -1, 1])),
    "both negated": Grid(start=np.diag([-1.0, -1, 1])),
    "stacked against the normal": Grid(start=np.diag([1.0, 1, -1])),
    "all negated": Grid(start=np.diag([-1.0, -1, -1])),
}


@pytest.mark.parametrize("enhanced", [False, True], ids=["classic", "enhanced"])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
def test_voxels_are_where_the_patient_is(folder, grid, enhanced):
    """Whatever the orientation, each voxel holds what the phantom is at its own position."""
    save(series(Made(grid=grid, enhanced=enhanced)), folder)
    _, way, voxels = read(folder)
    assert misplaced(way, voxels) <= 0.5


@pytest.mark.parametrize("enhanced", [False, True], ids=["classic", "enhanced"])
def test_every_slice_has_its_own_scale(folder, enhanced):
    """A slope and an intercept per slice are undone per slice."""
    made = Made(enhanced=enhanced, slopes=lambda k: (0.25 + 0.03 * k, 40.0 + k))
    save(series(made), folder)
    _, way, voxels = read(folder)
    assert misplaced(way, voxels) <= 0.5


@pytest.mark.parametrize(
    "syntax",
    [
        ImplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
        JPEGLSLossless,
    ],
    ids=lambda uid: uid.name,
)
def test_a_transfer_syntax_changes_nothing(folder, syntax):
    """Stored any way, the voxels are those of the phantom."""
    save(series(Made(syntax=syntax, grid=Grid(slices=16))), folder)
    _, way, voxels = read(folder)
    assert misplaced(way, voxels) <= 0.5


@pytest.mark.parametrize("enhanced", [False, True], ids=["classic", "enhanced"])
def test_highdicom_reads_the_same_volume(folder, enhanced):
    """The witness gives the same voxels at the same places."""
    save(series(Made(enhanced=enhanced, slopes=lambda k: (0.5, 3.0))), folder)
    _, way, voxels = read(folder)
    datasets = [pydicom.dcmread(path) for path in folder.iterdir()]
    witness = (
        highdicom.Image.from_dataset(datasets[0]).get_volume(dtype=np.float32)
        if enhanced
        else highdicom.get_volume_from_series(datasets, dtype=np.float32)
    )
    affine = RAS_FROM_LPS @ witness.affine[:, [2, 1, 0, 3]]
    array = witness.array.transpose(2, 1, 0)
    if np.abs(affine - way.geometry.affine).max() > 1e-6:  # stacked from the other end
        flip = np.diag([1.0, 1, -1, 1])
        flip[2, 3] = array.shape[2] - 1
        affine, array = affine @ flip, array[:, :, ::-1]
    np.testing.assert_allclose(affine, way.geometry.affine, atol=1e-6)
    np.testing.assert_allclose(array, voxels, rtol=1e-6)


def test_scanner_rounding_is_no_irregularity(folder):
    """Positions off by a hundredth of a millimetre still make a stack."""
    datasets = series(Made())
    noise = np.random.default_rng(0).normal(0, 0.003, (len(datasets), 3))
    for dataset, shift in zip(datasets, noise, strict=True):
        place = np.array([float(v) for v in dataset.ImagePositionPatient]) + shift
        dataset.ImagePositionPatient = [f"{v:.6f}" for v in place]
    save(datasets, folder)
    _, way, voxels = read(folder)
    assert misplaced(way, voxels) < 2.0
    assert way.geometry.spacing == pytest.approx((1.0, 1.25, 3.0), abs=0.01)


@pytest.mark.parametrize(("fault", "code"), FAULTS.values(), ids=FAULTS.keys())
def test_what_is_no_stack_is_refused(folder, fault, code):
    """Each fault has its code; none of them gives a volume."""
    save(fault(series(Made())), folder)
    with pytest.raises(ScanRefused) as refused:
        read(folder)
    assert refused.value.code == code
    assert "CANARY" not in str(refused.value)


def test_a_class_that_cannot_be_decoded_is_not_mr(folder):
    """A damaged field is as good as none, and never ends the run."""
    was = b"\x08\0\x16\0UI"
    for path in save(series(Made(grid=Grid(slices=8))), folder).iterdir():
        assert was in path.read_bytes()
        path.write_bytes(path.read_bytes().replace(was, b"\x08\0\x16\0QI"))
    (study,) = group(files_in(folder)).studies
    assert not study.series[0].is_mr


def test_numbers_of_series_that_are_none_come_last():
    """Also what looks like a digit to Python, and is no number to it."""
    assert sorted(["10", "\u00b9", "?", "2", "-1", "--3"], key=_order)[:3] == ["-1", "2", "10"]


@pytest.mark.parametrize("fault", ["missing", "doubled", "sheared"])
def test_what_is_no_stack_is_refused_in_enhanced_form_too(folder, fault):
    """The frames of one file are held to the same law as the files of a series."""
    (dataset,) = series(Made(enhanced=True))
    frames = list(dataset.PerFrameFunctionalGroupsSequence)
    if fault == "missing":
        del frames[[f.FrameContentSequence[0].InStackPositionNumber for f in frames].index(8)]
        dataset.PixelData = dataset.PixelData[: -48 * 64 * 2]
    elif fault == "doubled":
        frames[3].PlanePositionSequence = frames[4].PlanePositionSequence
    else:
        for frame in frames:
            n = frame.FrameContentSequence[0].InStackPositionNumber
            shifted(frame.PlanePositionSequence[0], n * 0.8 * Grid().axes[1])
    dataset.PerFrameFunctionalGroupsSequence = frames
    dataset.NumberOfFrames = len(frames)
    save([dataset], folder)
    with pytest.raises(ScanRefused) as refused:
        read(folder)
    assert refused.value.code == "E_SERIES_IRREGULAR"


def test_a_missing_last_slice_cannot_be_seen(folder):
    """What is left is a regular stack, read right: only who sent it knows that more was meant."""
    save(series(Made())[:-1], folder)
    _, way, voxels = read(folder)
    assert voxels.shape[2] == 15
    assert misplaced(way, voxels) <= 0.5


def test_a_codec_without_decoder_is_refused_by_name(folder):
    """Lossless JPEG needs a decoder that brainseg does not bring; the refusal names the syntax."""
    if pixels_chapter._is_decodable(JPEGLosslessSV1):
        pytest.skip("a decoder of lossless JPEG is installed")
    datasets = series(Made(grid=Grid(slices=8)))
    save(datasets, folder)
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = JPEGLosslessSV1
        dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51" + b"\0" * 60])
        dataset["PixelData"].is_undefined_length = True
        dataset.save_as(path)
    with pytest.raises(ScanRefused, match="JPEG Lossless") as refused:
        read(folder)
    assert refused.value.code == "E_TRANSFER_SYNTAX"


def test_a_dying_decoder_refuses_its_series_only(folder, monkeypatch):
    """A crash, a hang and too little of an answer end in a code, never in this process."""
    save(series(Made(syntax=RLELossless, grid=Grid(slices=8))), folder)
    real = subprocess.run

    def instead(code):
        return lambda command, **options: real([command[0], "-c", code], **options)

    for code in ("import os; os.abort()", "import sys; sys.exit(3)", "pass", "import time; time.sleep(60)"):
        monkeypatch.setattr(pixels_chapter.subprocess, "run", instead(code))
        monkeypatch.setattr(pixels_chapter, "MAX_SECONDS", 1)
        with pytest.raises(ScanRefused) as refused:
            read(folder)
        assert refused.value.code == "E_DECODER"


def test_damaged_files_are_refused_or_read(folder):
    """300 mutants of four kinds of files: a coded refusal or a volume, never another end."""
    rng = np.random.default_rng(4)
    sources = []
    for n, made in enumerate(
        [
            Made(grid=Grid(rows=16, columns=16, slices=8)),
            Made(grid=Grid(rows=16, columns=16, slices=8), enhanced=True),
            Made(grid=Grid(rows=16, columns=16, slices=8), syntax=DeflatedExplicitVRLittleEndian),
            Made(grid=Grid(rows=16, columns=16, slices=8), syntax=ImplicitVRLittleEndian),
        ]
    ):
        place = save(series(made), folder / f"good{n}")
        sources.append([path.read_bytes() for path in sorted(place.iterdir())])
    ends = {"read": 0, "refused": 0}
    for n in range(300):
        files = list(sources[n % len(sources)])
        hit = int(rng.integers(len(files)))
        files[hit] = mutant(files[hit], rng)
        place = folder / "bad"
        place.mkdir(exist_ok=True)
        for k, data in enumerate(files):
            (place / f"{k}").write_bytes(data)
        try:
            studies = group(files_in(place)).studies
            for refusal in (study.refusal for study in studies if study.refusal is not None):
                raise refusal
            for one in (one for study in studies for one in study.series):
                way = plan(one)
                fill(np.empty(way.geometry.shape, np.float32, order="F"), one, way, load(one).datasets)
            ends["read"] += 1
        except ScanRefused:
            ends["refused"] += 1
        for path in place.iterdir():
            path.unlink()
    assert ends["refused"] > 50
    assert ends["read"] > 10


def test_a_grid_that_is_too_large_is_refused_before_it_is_held(folder):
    """Rows and columns are believed only as far as a head has voxels."""
    (dataset,) = series(Made(enhanced=True, grid=replace(Grid(), rows=16, columns=16)))
    dataset.Rows = dataset.Columns = 60000
    save([dataset], folder)
    with pytest.raises(ScanRefused) as refused:
        read(folder)
    assert refused.value.code in ("E_DIMS", "E_TOO_BIG")
