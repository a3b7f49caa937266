"""Reading and writing NIfTI: what is right comes back exactly, what is not is refused by its code."""

import gzip
import os
import random
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from brainseg_runtime.errors import OutputUnwritable, ScanRefused
from brainseg_runtime.files import write_atomically
from brainseg_runtime.geometry import Geometry
from brainseg_runtime.nifti import open_image, read_image, read_labels, write_image, write_labels
from hostile.nifti import (
    AFFINE,
    CODES,
    GOOD,
    HOSTILE,
    SHAPE,
    header_for,
    moved,
    nifti,
    packed,
    patched,
    voxels,
    with_dims,
)
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from isal import isal_zlib
from mutants import mutate

relaxed = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def code_of(path: Path, **options: object) -> str:
    with pytest.raises(ScanRefused) as caught:
        read_image(path, **options)
    assert path.name in str(caught.value)
    return caught.value.code


# ---- right files ---------------------------------------------------------------------------------


@st.composite
def affines(draw: st.DrawFn) -> np.ndarray:
    """Any rotation, axis order, flip, spacing and position that a scanner may write."""
    number = st.floats(-1, 1, width=32)
    quaternion = np.array(draw(st.tuples(number, number, number, number)))
    if np.linalg.norm(quaternion) < 0.1:
        quaternion = np.array([1.0, 0, 0, 0])
    rotation = nibabel.quaternions.quat2mat(quaternion / np.linalg.norm(quaternion))
    spacing = draw(st.tuples(*[st.floats(0.3, 6)] * 3))
    flips = draw(st.tuples(*[st.sampled_from([-1, 1])] * 3))
    affine = np.eye(4)
    affine[:3, :3] = rotation[:, draw(st.permutations(range(3)))] * spacing * flips
    affine[:3, 3] = draw(st.tuples(*[st.floats(-300, 300)] * 3))
    return affine


@relaxed
@given(
    affine=affines(),
    dtype=st.sampled_from(sorted(CODES)),
    order=st.sampled_from("<>"),
    version=st.sampled_from([1, 2]),
    scaling=st.sampled_from([(0, 0), (1, 0), (np.nan, np.nan), (0.5, -3), (-2.25, 1000)]),
    forms=st.sampled_from([(1, 0), (0, 2), (1, 1), (4, 4)]),
    packed=st.booleans(),
    gap=st.sampled_from([4, 20, 1012]),
    seed=st.integers(0, 2**32 - 1),
)
def test_nibabel_sees_the_same_voxels_and_affine(
    tmp_path, affine, dtype, order, version, scaling, forms, packed, gap, seed
):
    """Voxels and affine are those that nibabel reads, for every type, byte order, version and form."""
    rng = np.random.default_rng(seed)
    info = np.iinfo(dtype) if np.dtype(dtype).kind in "iu" else None
    low, high = (max(info.min, -(2**36)), min(info.max, 2**36)) if info else (-1e4, 1e4)
    data = rng.uniform(low, high, SHAPE).astype(dtype)
    header = header_for(data, affine, version, order)
    content = nifti(
        data,
        header,
        gap=gap,
        vox_offset=header.sizeof_hdr + gap,
        scl_slope=scaling[0],
        scl_inter=scaling[1],
        qform_code=forms[0],
        sform_code=forms[1],
    )
    path = tmp_path / ("image.nii.gz" if packed else "image.nii")
    path.write_bytes(gzip.compress(content) if packed else content)
    image = read_image(path)
    try:
        witness = nibabel.load(path)
    except ValueError as error:  # see test_a_half_turn_is_read
        assume("w2 should be positive" not in str(error))
        raise
    np.testing.assert_array_equal(image.data, witness.get_fdata().astype(np.float32))
    np.testing.assert_allclose(image.geometry.affine, witness.affine, rtol=0, atol=1e-12)
    assert image.geometry.shape == SHAPE
    assert image.data.flags.f_contiguous
    assert image.geometry.header.version == version


def test_a_half_turn_is_read(tmp_path):
    """A NIfTI-2 file is placed where its writer meant, also where rounding made its quaternion too long."""
    affine = np.eye(4)
    path, data = tmp_path / "turned.nii", voxels()
    rng = np.random.default_rng(0)
    for _ in range(200):
        axis = rng.normal(size=3)
        quaternion = np.array([0, *(axis / np.linalg.norm(axis))])
        affine[:3, :3] = nibabel.quaternions.quat2mat(quaternion)
        header = header_for(data, affine, version=2)
        path.write_bytes(nifti(data, header, sform_code=0))
        np.testing.assert_allclose(read_image(path).geometry.affine, affine, rtol=0, atol=1e-6)


def assert_same_geometry_fields(one: Path, other: Path) -> None:
    a, b = nibabel.load(one).header, nibabel.load(other).header
    assert type(a) is type(b)
    names = ["qform_code", "sform_code", "xyzt_units", "srow_x", "srow_y", "srow_z"]
    names += [f"quatern_{n}" for n in "bcd"] + [f"qoffset_{n}" for n in "xyz"]
    for name in names:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    np.testing.assert_array_equal(a["pixdim"][:4], b["pixdim"][:4])


@relaxed
@given(
    affine=affines(),
    version=st.sampled_from([1, 2]),
    order=st.sampled_from("<>"),
    forms=st.sampled_from([(1, 0), (0, 2), (2, 1), (4, 4)]),
    units=st.sampled_from([0, 2, 10]),
    labels=hnp.arrays(np.uint8, SHAPE),
)
def test_a_mask_repeats_the_header_geometry_of_its_scan(
    tmp_path, affine, version, order, forms, units, labels
):
    """Written labels come back exactly, under the scan's geometry fields, version and codes."""
    header = header_for(voxels(), affine, version, order)
    content = nifti(header=header, qform_code=forms[0], sform_code=forms[1], xyzt_units=units)
    (tmp_path / "scan.nii").write_bytes(content)
    geometry = read_image(tmp_path / "scan.nii").geometry
    write_labels(tmp_path / "mask.nii.gz", labels, geometry)
    again, grid = read_labels(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(again, labels)
    np.testing.assert_array_equal(nibabel.load(tmp_path / "mask.nii.gz").dataobj, labels)
    assert grid.distance(geometry) == 0
    assert grid.header == geometry.header
    assert_same_geometry_fields(tmp_path / "scan.nii", tmp_path / "mask.nii.gz")


@relaxed
@given(affine=affines(), dtype=st.sampled_from(["f4", "i2"]), suffix=st.sampled_from([".nii", ".nii.gz"]))
def test_an_image_on_a_bare_grid_comes_back(tmp_path, affine, dtype, suffix):
    """Intensities written on a grid that no file spelled lie at the same place, by qform and sform."""
    path, data = tmp_path / f"image{suffix}", voxels(dtype)
    geometry = Geometry(SHAPE, affine)
    write_image(path, data, geometry)
    image = read_image(path)
    np.testing.assert_array_equal(image.data, data.astype(np.float32))
    assert image.geometry.distance(geometry) < 1e-3
    assert nibabel.load(path).header["sform_code"] == 1
    assert nibabel.load(path).header["qform_code"] == 1


def test_region_masks_are_written_in_four_dimensions(tmp_path):
    """One mask per region makes one (I, J, K, R) file that only a caller who wants frames reads."""
    masks = voxels("u1", (*SHAPE, 3))
    write_labels(tmp_path / "regions.nii.gz", masks, Geometry(SHAPE, AFFINE))
    np.testing.assert_array_equal(read_image(tmp_path / "regions.nii.gz", frames=True).data, masks)
    assert code_of(tmp_path / "regions.nii.gz") == "E_NDIM"


def test_frames_of_a_flat_file_are_one(tmp_path):
    """A caller who wants frames gets (I, J, K, 1) from a three-dimensional file."""
    (tmp_path / "image.nii").write_bytes(nifti())
    assert read_image(tmp_path / "image.nii", frames=True).data.shape == (*SHAPE, 1)


def test_an_empty_truth_is_an_answer(tmp_path):
    """Labels may be the same everywhere, intensities may not."""
    write_labels(tmp_path / "empty.nii.gz", np.zeros(SHAPE, np.uint8), Geometry(SHAPE, AFFINE))
    assert not read_labels(tmp_path / "empty.nii.gz")[0].any()
    assert code_of(tmp_path / "empty.nii.gz") == "E_CONSTANT"


@pytest.mark.parametrize(
    "data",
    [voxels() - 50, voxels() + 200, (voxels("f4") + 0.5), (voxels("f4") * 0.01)],
    ids=["negative", "beyond", "half", "fractions"],
)
def test_what_is_no_label_is_refused(tmp_path, data):
    """Labels are whole numbers in 0..255."""
    (tmp_path / "labels.nii").write_bytes(nifti(data, header_for(data)))
    with pytest.raises(ScanRefused, match="E_LABELS"):
        read_labels(tmp_path / "labels.nii")


def test_labels_with_a_slope_are_labels(tmp_path):
    """A mask stored as a large integer times a small slope is 0 and 1."""
    data = (voxels("i4") > 50).astype("i4") * 2**30
    (tmp_path / "mask.nii").write_bytes(nifti(data, header_for(data), scl_slope=2.0**-30 * (1 - 1e-7)))
    np.testing.assert_array_equal(read_labels(tmp_path / "mask.nii")[0], data > 0)


def test_two_gzip_streams_are_one_file(tmp_path):
    """What parallel compressors write in several streams is read whole."""
    content = nifti()
    for cut in (3, 348, 1000, len(content)):
        packed = gzip.compress(content[:cut]) + gzip.compress(content[cut:])
        (tmp_path / "image.nii.gz").write_bytes(packed)
        np.testing.assert_array_equal(read_image(tmp_path / "image.nii.gz").data, voxels())


def test_equal_labels_are_equal_bytes(tmp_path):
    """A mask written twice is one and the same file, whatever its name and the time."""
    geometry, labels = Geometry(SHAPE, AFFINE), voxels("u1")
    write_labels(tmp_path / "a.nii.gz", labels, geometry)
    write_labels(tmp_path / "b.nii.gz", np.asfortranarray(labels), geometry)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.nii.gz").read_bytes())[:4] == (348).to_bytes(4, "little")


def test_an_absent_handedness_is_kept_and_understood(tmp_path):
    """A pixdim[0] of 0 means 1, and a mask repeats the 0."""
    header = header_for(voxels(), np.diag([1.0, 1, 1, 1]))
    (tmp_path / "scan.nii").write_bytes(nifti(header=header, pixdim=[0, 1, 1, 1, 1, 1, 1, 1]))
    image = read_image(tmp_path / "scan.nii")
    np.testing.assert_array_equal(image.geometry.affine, np.eye(4))
    write_labels(tmp_path / "mask.nii", voxels("u1"), image.geometry)
    assert open_image(tmp_path / "mask.nii").geometry.header.pixdim[0] == 0


def test_a_z_scored_mri_is_an_mri(tmp_path):
    """Negative intensities alone make no CT, not even large ones."""
    for data in (voxels("f4") / 20 - 3, voxels("i2") * 30 - 1200):
        (tmp_path / "mri.nii").write_bytes(nifti(data, header_for(data)))
        np.testing.assert_array_equal(read_image(tmp_path / "mri.nii").data, data)


# ---- files that must be refused -------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_by_its_code(tmp_path, name):
    """Each wrong file ends in the one code that names what is wrong with it."""
    code, make = HOSTILE[name]
    path = tmp_path / "hostile.nii.gz"
    path.write_bytes(make())
    assert code_of(path) == code


def test_forms_may_differ_by_rounding(tmp_path):
    """A twentieth of a millimetre between qform and sform is rounding; the sform counts."""
    (tmp_path / "image.nii").write_bytes(moved(0.05))
    assert read_image(tmp_path / "image.nii").geometry.affine[2, 3] == pytest.approx(-69.95)


def test_only_regular_files_are_opened(tmp_path):
    """A folder, a fifo, a device and an absent file are refused, at once and unread."""
    os.mkfifo(tmp_path / "fifo.nii")
    (tmp_path / "folder.nii").mkdir()
    (tmp_path / "zero.nii").symlink_to("/dev/zero")
    (tmp_path / "loop.nii").symlink_to("loop.nii")
    (tmp_path / "dangling.nii").symlink_to("nowhere")
    for name in ("fifo", "folder", "zero"):
        assert code_of(tmp_path / f"{name}.nii") == "E_NOT_FILE"
    for name in ("absent", "loop", "dangling"):
        assert code_of(tmp_path / f"{name}.nii") == "E_INPUT_MISSING"


def test_links_must_stay_inside_the_input(tmp_path):
    """A link is followed within the input folder; one that leaves it is refused."""
    root = tmp_path / "input"
    (root / "deep").mkdir(parents=True)
    (root / "deep" / "image.nii").write_bytes(GOOD)
    (tmp_path / "secret.nii").write_bytes(GOOD)
    (root / "inside.nii").symlink_to(root / "deep" / "image.nii")
    (root / "outside.nii").symlink_to(tmp_path / "secret.nii")
    (root / "sideways").symlink_to(tmp_path)
    assert read_image(root / "inside.nii", root).file == "inside.nii"
    assert code_of(root / "outside.nii", root=root) == "E_NOT_FILE"
    assert code_of(root / "sideways" / "secret.nii", root=root) == "E_NOT_FILE"
    assert read_image(root / "outside.nii").data.shape == SHAPE


def test_a_file_beyond_the_size_limit_is_not_read(tmp_path):
    """Three gigabytes are refused by their size alone."""
    with (tmp_path / "big.nii").open("wb") as file:
        file.truncate(3 << 30)
    assert code_of(tmp_path / "big.nii") == "E_TOO_BIG"


BOMBS = """
    import resource, sys
    from pathlib import Path
    from brainseg_runtime.errors import ScanRefused
    from brainseg_runtime.nifti import read_image
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in sys.argv[1:]:
        try:
            read_image(Path(path))
        except ScanRefused as error:
            print(error.code)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_bombs_are_refused_within_bounded_memory(tmp_path):
    """A file that inflates to a gigabyte, or claims to, costs a few megabytes."""
    deflater = isal_zlib.compressobj(1, wbits=31)
    megabyte = bytes(1 << 20)
    zeros = b"".join(deflater.compress(megabyte) for _ in range(1024)) + deflater.flush()
    bombs = {
        "behind": (packed(GOOD) + zeros, "E_TRAILING"),
        "instead": (zeros, "E_NOT_NIFTI"),
        "claimed": (packed(with_dims(3, 640, 640, 640)), "E_TRUNCATED"),
        "nested": (packed(zeros), "E_NOT_NIFTI"),
        "offset": (packed(nifti(vox_offset=1 << 20)), "E_TRUNCATED"),
    }
    for name, (content, _) in bombs.items():
        (tmp_path / name).write_bytes(content)
    command = [sys.executable, "-c", textwrap.dedent(BOMBS), *(str(tmp_path / name) for name in bombs)]
    *codes, megabytes = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert codes == [code for _, code in bombs.values()]
    assert int(megabytes) < 40


# ---- mutants --------------------------------------------------------------------------------------


def test_no_mutant_of_a_gzipped_file_is_read_differently(tmp_path):
    """Of 1500 damaged .nii.gz files none gives other voxels or another affine in silence."""
    rng, path = random.Random(20240607), tmp_path / "mutant.nii.gz"
    data = voxels(shape=(16, 16, 12))
    original = nifti(data, header_for(data))
    sources = [gzip.compress(original, level, mtime=1) for level in (0, 1, 9)]
    accepted = 0
    for n in range(1500):
        path.write_bytes(mutate(sources[n % 3], rng))
        try:
            image = read_image(path)
        except ScanRefused:
            continue
        accepted += 1
        np.testing.assert_array_equal(image.data, data)
        np.testing.assert_array_equal(image.geometry.affine, AFFINE)
    assert accepted < 100  # those that differ in gzip's own time, name and system alone


def test_no_header_mutant_is_read_otherwise_than_by_nibabel(tmp_path):
    """Of 1500 files with a damaged header, whatever is accepted is what nibabel reads too."""
    rng, path = random.Random(20240608), tmp_path / "mutant.nii"
    data = voxels("i2")
    sources = [
        nifti(data, header_for(data, version=version, order=order)) for version in (1, 2) for order in "<>"
    ]
    accepted = 0
    for n in range(1500):
        content = bytearray(sources[n % 4])
        for _ in range(rng.randint(1, 2)):
            content[rng.randrange(348 if n % 4 < 2 else 540)] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        try:
            image = read_image(path)
        except ScanRefused:
            continue
        accepted += 1
        witness = nibabel.load(path)
        expected = witness.get_fdata().reshape(image.data.shape)  # less dimensions of 1
        np.testing.assert_allclose(image.data, expected, rtol=1e-6, atol=1e-30)
        np.testing.assert_allclose(image.geometry.affine, witness.affine, atol=1e-6)
    assert accepted > 100


def test_every_cut_and_every_split_of_a_stream_is_seen(tmp_path):
    """A .nii.gz is refused at every length but its own, also where the cut is in its trailer."""
    path, content = tmp_path / "cut.nii.gz", packed(GOOD)
    for length in [*range(1, 40), *range(len(content) - 40, len(content))]:
        path.write_bytes(content[:length])
        assert code_of(path) in ("E_TRUNCATED", "E_NOT_NIFTI")


# ---- writing --------------------------------------------------------------------------------------


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    """When the disk refuses, the old file stands and no half file is left."""
    path = tmp_path / "mask.nii.gz"
    path.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputUnwritable, match=r"E_OUTPUT.*No space left"):
        write_labels(path, voxels("u1"), Geometry(SHAPE, AFFINE))
    assert [file.name for file in tmp_path.iterdir()] == ["mask.nii.gz"]
    assert path.read_bytes() == b"old"


def test_an_output_that_cannot_be_is_refused(tmp_path):
    """A file where a folder should be, and a folder where the file should be, end in E_OUTPUT."""
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "mask.json", tmp_path / "folder"):
        with pytest.raises(OutputUnwritable) as caught:
            write_atomically(path, b"{}")
        assert caught.value.code == "E_OUTPUT"
        assert caught.value.exit_status == 7
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder"]


def test_missing_folders_are_made(tmp_path):
    """The output folder need not exist."""
    write_atomically(tmp_path / "a" / "b" / "c.json", b"{}")
    assert (tmp_path / "a" / "b" / "c.json").read_bytes() == b"{}"


def test_what_would_be_read_elsewhere_is_not_written(tmp_path):
    """A grid whose affine is not the one that its header spells is a mistake of the caller's."""
    (tmp_path / "scan.nii").write_bytes(GOOD)
    geometry = read_image(tmp_path / "scan.nii").geometry
    affine = geometry.affine.copy()
    affine[0, 3] += 5
    with pytest.raises(ValueError, match="affine"):
        write_labels(tmp_path / "mask.nii", voxels("u1"), replace(geometry, affine=affine))
    with pytest.raises(ValueError, match="shape"):
        write_labels(tmp_path / "mask.nii", voxels("u1", (8, 8, 8)), geometry)
    with pytest.raises(ValueError, match="uint8"):
        write_labels(tmp_path / "mask.nii", voxels("i2"), geometry)
    with pytest.raises(ValueError, match="float32 or int16"):
        write_image(tmp_path / "mask.nii", voxels("f8"), geometry)
    assert not (tmp_path / "mask.nii").exists()


# ---- real files -----------------------------------------------------------------------------------


@pytest.mark.data
def test_every_real_image_is_read_as_nibabel_reads_it(data_root):
    """No real file is refused; their affines, and the voxels of every fourth, are nibabel's."""
    paths = sorted(data_root.rglob("*.nii.gz"))
    assert len(paths) > 30
    for n, path in enumerate(paths):
        image, witness = read_image(path, data_root), nibabel.load(path)
        np.testing.assert_array_equal(image.geometry.affine, witness.affine)
        if n % 4 == 0:  # nibabel inflates slowly
            assert np.array_equal(image.data, np.asarray(witness.dataobj, np.float32)), path


@pytest.mark.data
def test_real_masks_repeat_the_header_geometry_of_their_scan(data_root, tmp_path):
    """A mask on a real T1c has that file's shape and geometry fields, codes included."""
    for path in sorted(data_root.glob("tcga-lgg/*/*/*t1c*.nii.gz")):
        geometry = read_image(path).geometry
        write_labels(tmp_path / "mask.nii.gz", np.ones(geometry.shape, np.uint8), geometry)
        assert nibabel.load(tmp_path / "mask.nii.gz").shape == nibabel.load(path).shape
        assert_same_geometry_fields(path, tmp_path / "mask.nii.gz")


@pytest.mark.data
def test_real_labels_are_read(data_root):
    """Expert and machine labels of all four kinds give their own values; a 530 is no label."""
    for pattern, values in (
        ("deepmedic-brats2013/*/OTMultiClass.nii.gz", {0, 1, 2, 3, 4}),
        ("deepmedic-brats2013/*/brainmask.nii.gz", {0, 1}),
        ("tcga-lgg/*/fusion/*.nii.gz", {0, 1, 2, 4}),
    ):
        for path in sorted(data_root.glob(pattern))[:2]:
            assert set(np.unique(read_labels(path)[0]).tolist()) <= values
    with pytest.raises(ScanRefused, match="E_LABELS"):
        read_labels(data_root / "synthseg-labels" / "training_seg_01.nii.gz")


@pytest.mark.data
def test_a_flipped_bit_in_a_real_file_is_seen(data_root, tmp_path):
    """Wherever a bit of a real .nii.gz flips, the file is refused."""
    content = next(data_root.glob("tcga-lgg/TCGA-FG-6692/native/*t1c.nii.gz")).read_bytes()
    rng = random.Random(5)
    for _ in range(20):
        at = rng.randrange(40, len(content))
        (tmp_path / "flipped.nii.gz").write_bytes(patched(content, at, bytes([content[at] ^ 4])))
        assert code_of(tmp_path / "flipped.nii.gz") in ("E_GZIP", "E_TRUNCATED", "E_TRAILING")
