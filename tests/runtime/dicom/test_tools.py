"""Independent programs as witnesses: dcm2niix, dciodvfy, Orthanc, and the SEGs of other writers."""

import io
import json
import shutil
import socket
import subprocess
import tarfile
import time
import urllib.request
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from brainseg_runtime.batch import Done, run
from brainseg_runtime.dicom.archive import files_in
from brainseg_runtime.dicom.pixels import load
from brainseg_runtime.dicom.rules import load_rules
from brainseg_runtime.dicom.seg import labels_in
from brainseg_runtime.dicom.series import group
from brainseg_runtime.dicom.stack import RAS_FROM_LPS, fill, plan
from brainseg_runtime.dicom.study import find_studies
from brainseg_runtime.errors import ScanRefused
from brainseg_runtime.geometry import Geometry
from brainseg_runtime.segmenter import Segmenter
from dicoms import Grid, save, study
from toys import toy_engine, toy_spec

SPEC = toy_spec()
KNOWN_MESSAGES = Path(__file__).with_name("dciodvfy_known.txt")


def tool(name: str) -> str:
    """The path of a program; a test that needs an absent one skips and says so."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/bin")
    if found is None:
        pytest.skip(f"{name} is not installed (CI installs it)")
    return found


@pytest.fixture(scope="session")
def real(data_root, tmp_path_factory):
    """Name -> a real series' folder, unpacked once."""

    @cache
    def unpacked(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        (archive,) = (data_root / name).glob("*.tar.xz")
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        return folder

    return unpacked


def read_one(folder: Path):
    """(plan, voxels) of the one MR series in a folder."""
    (found,) = group(files_in(folder)).studies
    (one,) = found.series
    way = plan(one)
    voxels = np.empty(way.geometry.shape, np.float32, order="F")
    fill(voxels, one, way, load(one).datasets)
    return way, voxels


def compare_with_dcm2niix(folder: Path, work: Path) -> tuple[float, float]:
    """Largest distance of a corner in mm, largest difference of a voxel, against dcm2niix."""
    way, voxels = read_one(folder)
    work.mkdir()
    command = [tool("dcm2niix"), "-z", "n", "-b", "n", "-f", "x", "-o", str(work), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = work.glob("*.nii")
    image = nibabel.load(path)
    array = np.asarray(image.dataobj, np.float32)
    # dcm2niix turns rows around and may stack from the other end: bring its axes to ours, with the affine.
    turn = np.rint(np.linalg.inv(image.affine[:3, :3]) @ way.geometry.affine[:3, :3])
    axes = [int(np.abs(turn[:, n]).argmax()) for n in range(3)]
    steps = tuple(slice(None, None, int(turn[axes[n], n])) for n in range(3))
    array = array.transpose(axes)[steps]
    change = np.zeros((4, 4))
    change[3, 3] = 1
    for new, old in enumerate(axes):
        sign = turn[old, new]
        change[old, new] = sign
        change[old, 3] = 0 if sign > 0 else array.shape[new] - 1
    other = Geometry(array.shape, image.affine @ change)
    return way.geometry.distance(other), float(np.abs(array - voxels).max())


@pytest.mark.data
@pytest.mark.parametrize("name", ["dicom-vs-seg-001", "dicom-t1-healthy"])
def test_real_series_lie_where_dcm2niix_puts_them(real, tmp_path, name):
    """Corners within a thousandth of a millimetre, voxels the same."""
    apart, differs = compare_with_dcm2niix(real(name), tmp_path / "out")
    assert apart < 1e-3
    assert differs <= 1e-3


@pytest.mark.parametrize("enhanced", [False, True], ids=["classic", "enhanced"])
def test_synthetic_series_lie_where_dcm2niix_puts_them(tmp_path, enhanced):
    """A double-oblique series of the phantom, in both forms."""
    datasets = study(grid=Grid(slices=16), enhanced=enhanced)
    save(datasets[:1] if enhanced else datasets[:16], tmp_path / "in")
    apart, differs = compare_with_dcm2niix(tmp_path / "in", tmp_path / "out")
    assert apart < 1e-3
    assert differs == 0


@pytest.mark.data
def test_a_real_ct_is_refused_as_ct(data_root):
    """By its kind, not by how it looks."""
    found = find_studies([data_root / "dicom-ct-negative"], SPEC, load_rules())
    (refusal,) = found.refused.values()
    assert refusal.code == "E_NOT_MR"
    assert "CT" in refusal.received


@pytest.mark.data
def test_a_real_series_alone_is_refused_with_what_it_is(real):
    """One T1 is no study of four; the reasons say what it was taken for."""
    found = find_studies([real("dicom-vs-seg-001")], SPEC, load_rules())
    (refusal,) = found.refused.values()
    assert refusal.code == "E_MODALITY_MISSING"
    assert "inversion-for-t1" in refusal.received
    assert "VS-SEG" not in str(refusal)


SAMPLES = {
    "liver.dcm": "BINARY",
    "partial_overlaps.dcm": "BINARY",
    "sparse-labelmap-ppv5.dcm": "LABELMAP",
    "highdicom/seg_image_ct_binary.dcm": "BINARY",
    "highdicom/seg_image_ct_binary_overlap.dcm": "BINARY",
    "highdicom/seg_image_ct_binary_single_frame.dcm": "BINARY",
    "highdicom/seg_image_ct_binary_fractional.dcm": "FRACTIONAL",
    "highdicom/seg_image_ct_true_fractional.dcm": "FRACTIONAL",
}


@pytest.mark.data
@pytest.mark.parametrize("name", SAMPLES)
def test_segs_of_other_writers_are_read_where_they_lie(data_root, name):
    """Every pixel that a frame sets comes back at the place that the frame gives it."""
    seg = pydicom.dcmread(data_root / "dicom-seg-samples" / name)
    assert getattr(seg, "SegmentationType", "") == SAMPLES[name]
    geometry, expected = grid_around(seg)
    top = max(int(segment.SegmentNumber) for segment in seg.SegmentSequence)
    labels = labels_in(seg, geometry, list(range(1, top + 1)))
    np.testing.assert_array_equal(labels > 0, expected)


@pytest.mark.data
def test_one_mask_in_two_encodings_is_one_mask(data_root):
    """The same segmentation, written as BINARY and as FRACTIONAL by another library."""
    folder = data_root / "dicom-seg-samples" / "highdicom"
    masks = []
    for name in ("binary", "binary_fractional"):
        seg = pydicom.dcmread(folder / f"seg_image_ct_{name}.dcm")
        masks.append(labels_in(seg, grid_around(seg)[0], [1]))
    np.testing.assert_array_equal(*masks)
    assert masks[0].any()


def grid_around(seg):
    """A grid that holds every frame of a SEG, and where on it pixels are set, frame by frame."""
    shared = seg.SharedFunctionalGroupsSequence[0]
    own = seg.PerFrameFunctionalGroupsSequence
    pick = lambda group, name: (group if name in group else shared)[name][0]  # noqa: E731
    cosines = np.array(pick(own[0], "PlaneOrientationSequence").ImageOrientationPatient, float)
    spacing = [float(v) for v in pick(own[0], "PixelMeasuresSequence").PixelSpacing]
    normal = np.cross(cosines[:3], cosines[3:])
    places = np.array([pick(g, "PlanePositionSequence").ImagePositionPatient for g in own], float)
    heights = places @ normal
    levels = np.unique(np.round(heights, 3))
    step = np.diff(levels).min() if len(levels) > 1 else 1.0
    slices = round((levels[-1] - levels[0]) / step) + 1
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1], lps[:3, 2] = cosines[:3] * spacing[1], cosines[3:] * spacing[0], normal * step
    lps[:3, 3] = places[heights.argmin()]
    geometry = Geometry((int(seg.Columns), int(seg.Rows), slices), RAS_FROM_LPS @ lps)
    expected = np.zeros(geometry.shape, bool)
    frames = seg.pixel_array.reshape(-1, int(seg.Rows), int(seg.Columns))
    least = seg.MaximumFractionalValue / 2 if seg.SegmentationType == "FRACTIONAL" else 1
    for frame, height in zip(frames, heights, strict=True):
        expected[:, :, round((height - levels[0]) / step)] |= least <= frame.T
    return geometry, expected


@pytest.fixture(scope="module", params=["classic", "enhanced"])
def written(request, tmp_path_factory) -> tuple[Path, list[Path], np.ndarray]:
    """Study folder, the DICOM files made from it, and the labels of the mask."""
    folder = tmp_path_factory.mktemp(request.param)
    save(
        study(grid=Grid(rows=40, columns=36, slices=16), enhanced=request.param == "enhanced"), folder / "in"
    )
    found = find_studies([folder / "in"], SPEC, load_rules())
    with Segmenter(SPEC, toy_engine(SPEC), model={"name": "toy", "sha256": "ab" * 32}) as segmenter:
        kinds = ("dicom-seg", "dicom-labelmap", "dicom-sr")
        (done,) = run(segmenter, found, folder / "out", attachments=kinds)
    assert isinstance(done, Done)
    labels = np.asarray(nibabel.load(done.written.mask).dataobj)
    return folder / "in", sorted((folder / "out").glob("*.dcm")), labels


@pytest.fixture(scope="module")
def empty(tmp_path_factory) -> list[Path]:
    """The DICOM files of a study without a tumour."""
    folder = tmp_path_factory.mktemp("empty")
    save(study(grid=Grid(rows=40, columns=36, slices=16)), folder / "in")
    found = find_studies([folder / "in"], SPEC, load_rules())
    nothing = toy_engine(SPEC, lambda tiles: np.full((*tiles.shape[:4], 3), -9.0, np.float32))
    with Segmenter(SPEC, nothing, model={"name": "toy", "sha256": "ab" * 32}) as segmenter:
        list(run(segmenter, found, folder / "out", attachments=("dicom-seg", "dicom-sr")))
    return sorted((folder / "out").glob("*.dcm"))


def complaints(path: Path) -> set[str]:
    """What dciodvfy says of a file beside the name of its kind."""
    done = subprocess.run([tool("dciodvfy"), str(path)], capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    return {line.strip() for line in lines if line.startswith(("Error", "Warning"))}


def known(kind: str) -> set[str]:
    """The messages that are expected of a kind of file, each with its reason in the list."""
    lines = KNOWN_MESSAGES.read_text().splitlines()
    pairs = (line.split(": ", 1) for line in lines if line and not line.startswith("#"))
    return {message for name, message in pairs if name == kind}


def test_dciodvfy_finds_nothing_new(written, empty):
    """Every SEG and every report: no message outside the committed list."""
    _, files, _ = written
    for path in [*files, *empty]:
        kind = path.stem.rsplit("_", 1)[1]
        assert complaints(path) <= known(kind), path.name


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Orthanc:
    """A running server with an empty store of its own."""

    def __init__(self, folder: Path) -> None:
        self.http, self.dicom = free_port(), free_port()
        plugins = sorted(Path("/usr/lib/orthanc").glob("libOrthancDicomWeb.so.*"))
        if not plugins:
            pytest.skip("orthanc-dicomweb is not installed (CI installs it)")
        settings = {
            "Name": "tests",
            "StorageDirectory": str(folder),
            "IndexDirectory": str(folder),
            "Plugins": [str(plugins[0])],
            "HttpPort": self.http,
            "DicomPort": self.dicom,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomAet": "ORTHANC",
            "DicomCheckCalledAet": True,
            "DicomAssociationCloseDelay": 0,
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        (folder / "orthanc.json").write_text(json.dumps(settings))
        command = [tool("Orthanc"), str(folder / "orthanc.json")]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(200):
            try:
                self.get("/system")
                return
            except OSError:
                time.sleep(0.05)
        raise RuntimeError("Orthanc does not answer")

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=10) as answer:
            return bytes(answer.read())

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=20)


@pytest.fixture
def orthanc(tmp_path) -> Iterator[Orthanc]:
    (tmp_path / "orthanc").mkdir()
    server = Orthanc(tmp_path / "orthanc")
    yield server
    server.close()


def test_orthanc_gives_back_what_it_was_sent(orthanc, written, tmp_path):
    """C-STORE of study, SEG and report by DCMTK, back by DICOMweb: equal pixels, equal mask, equal report."""
    web = pytest.importorskip(
        "dicomweb_client.api", reason="dicomweb-client is not installed (CI installs it)"
    )
    source, files, labels = written
    sent = [path for path in files if not path.stem.endswith("labelmap")]  # Orthanc 1.10 predates LABELMAP
    storescu = [tool("storescu"), "-R", "-aec", "ORTHANC", "127.0.0.1", str(orthanc.dicom)]
    subprocess.run([*storescu, "+sd", str(source), *map(str, sent)], check=True, capture_output=True)
    client = web.DICOMwebClient(f"http://127.0.0.1:{orthanc.http}/dicom-web")
    back = {}
    for path in sent:
        mine = pydicom.dcmread(path)
        (entry,) = client.search_for_instances(search_filters={"SOPInstanceUID": mine.SOPInstanceUID})
        assert entry
        back[path] = client.retrieve_instance(
            mine.StudyInstanceUID, mine.SeriesInstanceUID, mine.SOPInstanceUID
        )
        if "PixelData" in mine:
            assert bytes(back[path].PixelData) == bytes(mine.PixelData)
    (scan,) = find_studies([source], SPEC, load_rules()).scans
    seg = next(dataset for path, dataset in back.items() if path.stem.endswith("seg"))
    np.testing.assert_array_equal(labels_in(seg, scan.grid.plan.geometry, (1, 2, 3)), labels)
    report = next(dataset for path, dataset in back.items() if path.stem.endswith("_sr"))
    assert report.ContentSequence == pydicom.dcmread(next(p for p in sent if "_sr" in p.name)).ContentSequence
    # And the study, fetched back, gives the same voxels.
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    for n, dataset in enumerate(client.retrieve_study(seg.StudyInstanceUID)):
        dataset.save_as(fetched / f"{n}", enforce_file_format=True)
    (again,) = find_studies([fetched], SPEC, load_rules()).scans
    assert again.id == scan.id
    np.testing.assert_array_equal(again.read().data, scan.read().data)


def test_a_labelmap_passes_through_dicomweb(orthanc, written):
    """STOW-RS takes a LABELMAP, WADO-RS gives it back with the same pixels and the same mask."""
    web = pytest.importorskip(
        "dicomweb_client.api", reason="dicomweb-client is not installed (CI installs it)"
    )
    source, files, labels = written
    (path,) = (path for path in files if path.stem.endswith("labelmap"))
    mine = pydicom.dcmread(path)
    client = web.DICOMwebClient(f"http://127.0.0.1:{orthanc.http}/dicom-web")
    client.store_instances([mine])
    back = client.retrieve_instance(mine.StudyInstanceUID, mine.SeriesInstanceUID, mine.SOPInstanceUID)
    assert bytes(back.PixelData) == bytes(mine.PixelData)
    (scan,) = find_studies([source], SPEC, load_rules()).scans
    np.testing.assert_array_equal(labels_in(back, scan.grid.plan.geometry, (1, 2, 3)), labels)


def test_our_own_results_are_no_input(written, tmp_path):
    """A study with its SEG and report beside it is read as it was before."""
    source, files, _ = written
    shutil.copytree(source, tmp_path / "both")
    for path in files:
        shutil.copy(path, tmp_path / "both")
    (before,) = find_studies([source], SPEC, load_rules()).scans
    (after,) = find_studies([tmp_path / "both"], SPEC, load_rules()).scans
    assert before.identity() == after.identity()
    with pytest.raises(ScanRefused):
        raise next(iter(find_studies([files[0].parent], SPEC, load_rules()).refused.values()))
    assert pydicom.dcmread(io.BytesIO(files[0].read_bytes())).Modality in ("SEG", "SR")
