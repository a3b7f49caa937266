"""The slices of figshare 1512427: files of the documented layout, and what is left of the real ones."""

import contextlib
import csv
import io
import json
import zipfile
from itertools import pairwise
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from brainseg_runtime.errors import ScanRefused, UsageRefused
from brainseg_runtime.nifti import read_labels
from brainseg_runtime.overlap import dice
from brainseg_runtime.scans import find_scans, read
from brainseg_trainer.config import load
from brainseg_trainer.figshare import figshare_spec, import_slices
from brainseg_trainer.figshare.importing import read_folds
from brainseg_trainer.figshare.slices import polygon_mask, read_slice
from brainseg_trainer.figshare.stacks import likeness, look_at, stacks
from figshare_files import circle, cvind, mat, picture, write_download
from PIL import Image

SPEC = figshare_spec(load("figshare"), (16, 16, 1))


def quiet(*_):
    """A report that nobody reads."""


@pytest.fixture
def download(tmp_path):
    return write_download(tmp_path / "download")


def test_a_slice_is_upright():
    """What lies transposed in the file comes out as a radiologist sees it, and the id as text."""
    image = picture(1, 2)
    found = read_slice(mat("MR040218H\0", 2, image), 17)
    np.testing.assert_array_equal(found.image, image)
    assert (found.patient, found.kind, found.number) == ("MR040218H", 2, 17)
    rows, columns = np.nonzero(found.mask)
    assert (round(columns.mean()), round(rows.mean())) == (299, 199)


OTHERS = {
    "empty": (b"", "E_SLICE"),
    "cut": (mat()[:20_000], "E_SLICE"),
    "v5": (b"MATLAB 5.0 MAT-file" + bytes(1000), "E_SLICE"),
    "label": (mat(kind=4), "E_SLICE"),
    "mask-missing": (mat(tumorMask=None), "E_SLICE"),
    "pid-number": (mat(PID=np.array([[112649.0]])), "E_SLICE"),
    "pid-empty": (mat(patient="\0"), "E_SLICE"),
    "shape": (mat(image=np.zeros((300, 300), np.int16), mask=np.ones((300, 300))), "E_SLICE"),
    "mask-empty": (mat(mask=np.zeros((512, 512), np.uint8)), "E_SLICE"),
    "mask-small": (mat(mask=np.ones((256, 256), np.uint8)), "E_SLICE"),
    "odd": (mat(tumorBorder=np.ones((1, 7))), "E_SLICE"),
    "moved": (mat(border=circle(40) + 60, mask=polygon_mask(circle(40), (512, 512))), "E_OUTLINE"),
    "turned": (
        mat(border=circle(40)[:, ::-1].copy(), mask=polygon_mask(circle(40), (512, 512))),
        "E_OUTLINE",
    ),
}


@pytest.mark.parametrize(("content", "code"), OTHERS.values(), ids=OTHERS)
def test_other_files_are_refused(content, code):
    """What is no such slice, or contradicts itself, is refused under a code, with the number in the words."""
    with pytest.raises(ScanRefused, match=r"\b17\b") as refusal:
        read_slice(content, 17)
    assert refusal.value.code == code


def test_mutants_are_read_or_refused():
    """Files with a few wrong bytes end in a slice or in a coded refusal, and in nothing else."""
    rng = np.random.default_rng(1)
    content = mat()
    for n in range(120):
        mutant = bytearray(content)
        for _ in range(3):
            mutant[rng.integers(len(mutant) if n % 2 else 6000)] = rng.integers(256)
        with contextlib.suppress(ScanRefused):
            assert read_slice(bytes(mutant), 1).image.shape == (512, 512)


def test_values_outside_the_file_are_refused(tmp_path):
    """A link to another file is not followed."""
    (tmp_path / "other.mat").write_bytes(mat())
    path = tmp_path / "1.mat"
    path.write_bytes(mat(image=picture(0, 0)))
    with h5py.File(path, "r+") as file:
        del file["cjdata/image"]
        file["cjdata/image"] = h5py.ExternalLink(str(tmp_path / "other.mat"), "cjdata/image")
    with pytest.raises(ScanRefused, match="link") as refusal:
        read_slice(path.read_bytes(), 1)
    assert refusal.value.code == "E_SLICE"


def test_slices_become_scans_that_the_runtime_finds(download, tmp_path):
    """Stacks break where the plane changes; each is a scan with truth, in its patient's fold."""
    result = import_slices(download, tmp_path / "out", {}, quiet)
    numbers = [stack.numbers for stack in result.stacks]
    assert numbers == [(1, 2, 3), (4, 5, 6), (7,), (955, 956)]
    assert not result.refused
    assert not result.foreign
    assert len(result.missing) == 3064 - 9
    index = json.loads((tmp_path / "out" / "figshare.json").read_text())
    assert "Nominal" in index["geometry"]
    scans = {scan.id: scan for scan in find_scans(tmp_path / "out", SPEC).scans}
    assert set(index["scans"]) == set(scans)
    first = index["scans"]["MRx2001_0001-0003"]
    assert (first["patient"], first["type"], first["fold"], first["plane"]) == (
        "MR 01",
        "glioma",
        2,
        "unknown",
    )
    assert index["scans"]["100360_0955-0956"]["fold"] == 1


def test_written_voxels_are_the_slices(download, tmp_path):
    """I runs along columns, J down rows, K across slices; 256 x 256 has pixels twice as large."""
    import_slices(download, tmp_path / "out", {}, quiet)
    scans = {scan.id: scan for scan in find_scans(tmp_path / "out", SPEC).scans}
    volume = read(scans["MRx2001_0004-0006"])
    for k in range(3):
        np.testing.assert_array_equal(volume.data[..., k, 0].T, picture(1, k))
    np.testing.assert_allclose(volume.geometry.spacing, (0.49, 0.49, 7.0), rtol=1e-6)
    lone = scans["100360_0007-0007"]
    labels, _ = read_labels(lone.truth, thin=True)
    assert labels.shape == (512, 512, 1)
    np.testing.assert_array_equal(labels[..., 0].T > 0, polygon_mask(circle(40), (512, 512)))
    small = read(scans["100360_0955-0956"])
    np.testing.assert_allclose(small.geometry.spacing, (0.98, 0.98, 7.0), rtol=1e-6)


def test_damaged_and_foreign_files_are_named_and_the_rest_imported(download, tmp_path):
    """A damaged slice, one without a mask, a stranger and a broken zip do not stop the others."""
    (download / "2.mat").write_bytes((download / "2.mat").read_bytes()[:30_000])
    (download / "8.mat").write_bytes(mat("100360", tumorMask=None))
    (download / "notes.mat").write_bytes(b"x")
    (download / "part.zip").write_bytes(b"PK\3\4 broken")
    result = import_slices(download, tmp_path / "out", {}, quiet)
    assert {name: error.code for name, error in result.refused.items()} == {
        "2.mat": "E_SLICE",
        "8.mat": "E_SLICE",
        "part.zip": "E_ZIP",
    }
    assert result.foreign == ["notes.mat"]
    assert [stack.numbers for stack in result.stacks] == [(1,), (3,), (4, 5, 6), (7,), (955, 956)]


def test_a_patient_in_two_folds_stops_the_import(download, tmp_path):
    """Folds that part a patient would leak; nothing is written."""
    (download / "cvind.mat").write_bytes(cvind([(5, 4)]))
    with pytest.raises(ScanRefused, match=r"MR 01: slice 1 in fold 2, slice 5 in fold 4") as refusal:
        import_slices(download, tmp_path / "out", {}, quiet)
    assert refusal.value.code == "E_FOLDS"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [cvind(size=3063), cvind([(9, 6)]), cvind([(9, 1.5)]), b"x"])
def test_folds_of_another_form_are_refused(content):
    """Another length, another number, a fraction, another file."""
    with pytest.raises(ScanRefused) as refusal:
        read_folds(content)
    assert refusal.value.code == "E_FOLDS"


def test_zips_and_zips_of_zips_give_the_same(download, tmp_path):
    """The four zips of the data set, and the one of the whole article around them, are read as they come."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        for path in sorted(download.glob("[0-9]*.mat")):
            archive.write(path, f"brainTumorDataPublic_1766/{path.name}")
    with zipfile.ZipFile(tmp_path / "article.zip", "w") as archive:
        archive.writestr("brainTumorDataPublic_1766.zip", inner.getvalue())
        archive.writestr("cvind.mat", cvind())
    (tmp_path / "zips").mkdir()
    (tmp_path / "zips" / "1.zip").write_bytes(inner.getvalue())
    (tmp_path / "zips" / "cvind.mat").write_bytes(cvind())
    plain = import_slices(download, tmp_path / "a", {}, quiet)
    for n, source in enumerate(["article.zip", "zips"]):
        assert import_slices(tmp_path / source, tmp_path / f"b{n}", {}, quiet).stacks == plain.stacks
    index = [
        json.loads((tmp_path / name / "figshare.json").read_text())["scans"] for name in ("a", "b0", "b1")
    ]
    assert index[0] == index[1] == index[2]


def test_a_zip_that_climbs_or_explodes_is_refused(tmp_path):
    """No member leaves the archive's folder, and none inflates beyond measure."""
    with zipfile.ZipFile(tmp_path / "climber.zip", "w") as archive:
        archive.writestr("../../1.mat", mat())
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.mat", bytes(200_000_000))
    for name in ("climber", "bomb"):
        with pytest.raises(ScanRefused) as refusal:
            import_slices(tmp_path / f"{name}.zip", tmp_path / "out", {}, quiet)
        assert refusal.value.code in ("E_ZIP", "E_TOO_BIG")
    assert not (tmp_path / "out").exists()


def test_what_the_user_knows_of_planes_decides(download, tmp_path):
    """Planes that the user names part and join slices, whatever they look like."""
    planes = {1: "axial", 2: "coronal", 3: "coronal", 4: "coronal"}
    result = import_slices(download, tmp_path / "out", planes, quiet)
    assert [(s.numbers, s.plane) for s in result.stacks][:2] == [
        ((1,), "axial"),
        ((2, 3, 4, 5, 6), "coronal"),
    ]


def test_an_import_is_not_written_over(download, tmp_path):
    """A folder that holds an import is left alone."""
    import_slices(download, tmp_path / "out", {}, quiet)
    with pytest.raises(UsageRefused):
        import_slices(download, tmp_path / "out", {}, quiet)


def test_nothing_to_import_is_refused(tmp_path):
    """A folder without a single slice is named."""
    (tmp_path / "1.mat").write_bytes(b"x")
    with pytest.raises(ScanRefused) as refusal:
        import_slices(tmp_path, tmp_path / "out", {}, quiet)
    assert refusal.value.code == "E_NO_SCANS"


# What is left of the real data set.


@pytest.fixture(scope="module")
def derived(data_root):
    folder = data_root / "figshare-1512427-derived"
    if not folder.is_dir():
        pytest.skip("no figshare-1512427-derived among the real data")
    return folder


@pytest.fixture(scope="module")
def borders(derived):
    with (derived / "tumor_metadata.csv").open() as file:
        return {int(row["file"].split(".")[0]): row for row in csv.DictReader(file)}


@pytest.mark.data
def test_the_genuine_folds(derived):
    """The data set's own folds have the published sizes."""
    folds = read_folds((derived / "cvind5fold.mat").read_bytes())
    assert np.bincount(folds).tolist() == [0, 570, 655, 562, 613, 664]


@pytest.mark.data
@pytest.mark.parametrize("number", range(995, 1000))
def test_genuine_polygons_are_genuine_masks(derived, borders, number):
    """Columns come first and the first pixel is 1, 1: with that, polygon and mask agree beyond 0.997."""
    with Image.open(derived / "samples" / f"{number}_mask.png") as image:
        mask = np.array(image.convert("L")) > 127
    border = np.array(json.loads(borders[number]["tumorBorder"]))
    assert dice(polygon_mask(border, mask.shape), mask) >= 0.997


@pytest.mark.data
def test_genuine_slices_are_parted_where_patients_change(derived, borders):
    """Slices 995 to 997 and 998 to 999 are stacks of two heads, and look so."""
    looks = []
    for number in range(995, 1000):
        with Image.open(derived / "samples" / f"{number}_mri.png") as image:
            pixels = np.array(image.convert("L").resize((512, 512))).astype(np.int16)
        border = np.array(json.loads(borders[number]["tumorBorder"]))
        mask = polygon_mask(border, (512, 512))
        looks.append(
            look_at(SimpleNamespace(number=number, patient="p", kind=3, image=pixels, mask=mask, sha256=""))
        )
    assert [stack.numbers for stack in stacks(looks, {})] == [(995, 996, 997), (998, 999)]
    assert likeness(looks[2], looks[3]) < 0.6 < 0.9 < min(likeness(a, b) for a, b in pairwise(looks[:3]))
