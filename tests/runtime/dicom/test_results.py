"""SEG and report: what is written says what was found, where it was found, and the same every time."""

import io
import json
import re
import subprocess
import sys
from dataclasses import replace

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
from brainseg_runtime.batch import Done, Failed, Skipped, run
from brainseg_runtime.diameter import largest_diameter, largest_in_slice
from brainseg_runtime.dicom import results
from brainseg_runtime.dicom.rules import load_rules
from brainseg_runtime.dicom.seg import Origin, labels_in, make_seg, to_bytes
from brainseg_runtime.dicom.sr import measure, measured_in
from brainseg_runtime.dicom.stack import RAS_FROM_LPS
from brainseg_runtime.dicom.study import find_studies
from brainseg_runtime.geometry import Geometry
from brainseg_runtime.segmenter import Segmenter
from brainseg_runtime.volume import Segmentation
from dicoms import SAGITTAL, Grid, Made, save, study
from toys import toy_bundle, toy_engine, toy_spec

SPEC = toy_spec()
KINDS = ("dicom-seg", "dicom-labelmap", "dicom-sr")
OBLIQUE = Grid(rows=40, columns=36, slices=16)


def scan_of(folder, grid=OBLIQUE, enhanced=False):
    save(study(enhanced=enhanced, grid=grid), folder)
    (scan,) = find_studies([folder], SPEC, load_rules()).scans
    return scan


def drawn(scan, empty=False):
    """A segmentation that is asymmetric on every axis: boxes at three corners."""
    labels = np.zeros(scan.grid.plan.geometry.shape, np.uint8)
    if not empty:
        labels[2:9, 3:7, 1:5] = 2
        labels[4:6, 4:6, 2:4] = 3
        labels[20:30, 30:33, 9:14] = 1
    record = {
        "model": {"name": "toy", "sha256": "ab" * 32},
        "engine": {"engine": "toy", "version": "1", "precision": "fp32", "provider": "numpy"},
        "options": {},
        "inputs": [vars(source) for source in scan.read().sources],
    }
    return Segmentation(
        labels, scan.grid.plan.geometry, SPEC.label_names, SPEC.region_labels, scan.id, record
    )


def origin(scan, segmentation):
    return Origin(tuple(i.header for i in scan.grid.series.instances), segmentation.record)


def witness_labels(data, geometry):
    """The labels that highdicom reads from a SEG, brought onto a grid by its own geometry code."""
    lps = RAS_FROM_LPS @ geometry.affine[:, [2, 1, 0, 3]]
    seg = highdicom.seg.segread(io.BytesIO(data))
    grid = highdicom.VolumeGeometry(
        lps, geometry.shape[::-1], "PATIENT", frame_of_reference_uid=seg.FrameOfReferenceUID
    )
    return seg.get_volume(combine_segments=True).match_geometry(grid).array.transpose(2, 1, 0)


GRIDS = {
    "oblique": OBLIQUE,
    "negated column cosine": replace(OBLIQUE, start=np.diag([1.0, -1, 1])),
    "stacked against the normal": replace(OBLIQUE, start=np.diag([1.0, 1, -1])),
    "sagittal": replace(OBLIQUE, start=SAGITTAL),
}


@pytest.mark.parametrize("enhanced", [False, True], ids=["classic", "enhanced"])
@pytest.mark.parametrize("form", ["BINARY", "LABELMAP"])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
def test_a_seg_holds_the_mask_where_it_was_drawn(folder, grid, form, enhanced):
    """By our own reading and by highdicom's: the same labels at the same voxels."""
    scan = scan_of(folder, grid, enhanced)
    segmentation = drawn(scan)
    data = to_bytes(make_seg(segmentation, origin(scan, segmentation), form))
    seg = pydicom.dcmread(io.BytesIO(data))
    np.testing.assert_array_equal(labels_in(seg, segmentation.geometry, (1, 2, 3)), segmentation.labels)
    np.testing.assert_array_equal(witness_labels(data, segmentation.geometry), segmentation.labels)


def test_a_seg_says_what_made_it_and_what_it_refers_to(folder):
    """Coded segments, algorithm with version and model hash, source instances, patient and frame."""
    scan = scan_of(folder)
    segmentation = drawn(scan)
    seg = make_seg(segmentation, origin(scan, segmentation), "BINARY")
    header = scan.grid.series.header
    assert seg.PatientID == header.PatientID
    assert seg.StudyInstanceUID == header.StudyInstanceUID
    assert seg.FrameOfReferenceUID == header.FrameOfReferenceUID
    types = [s.SegmentedPropertyTypeCodeSequence[0] for s in seg.SegmentSequence]
    assert [(t.CodingSchemeDesignator, t.CodeValue) for t in types] == [
        ("SCT", "6574001"),
        ("SCT", "79654002"),
        ("NCIt", "C113842"),
    ]
    for segment in seg.SegmentSequence:
        assert segment.SegmentAlgorithmType == "AUTOMATIC"
        (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
        assert "ab" * 32 in str(algorithm.AlgorithmParameters)
        assert "brainseg-runtime" in algorithm.AlgorithmVersion
        assert segment.TrackingUID
    referred = {
        instance.ReferencedSOPInstanceUID
        for series in seg.ReferencedSeriesSequence
        for instance in series.ReferencedInstanceSequence
    }
    assert referred == {str(instance.uid) for instance in scan.grid.series.instances}
    assert "research use only" in seg.SeriesDescription


def batch(folder, out, engine=None, kinds=KINDS, **options):
    found = find_studies([folder], SPEC, load_rules())
    with Segmenter(SPEC, engine or toy_engine(SPEC), model={"name": "toy", "sha256": "ab" * 32}) as segmenter:
        return list(run(segmenter, found, out, attachments=kinds, **options))


def test_equal_inputs_give_equal_files(folder, tmp_path):
    """Byte for byte, in another folder, from files of other names; another model gives other identifiers."""
    save(study(grid=OBLIQUE), folder)
    save(study(grid=OBLIQUE), tmp_path / "again", seed=5)
    batch(folder, tmp_path / "one")
    batch(tmp_path / "again", tmp_path / "two")
    ones = sorted((tmp_path / "one").glob("*.dcm"))
    assert [path.name.rsplit("_", 1)[1] for path in ones] == ["labelmap.dcm", "seg.dcm", "sr.dcm"]
    for path in ones:
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    scan = find_studies([folder], SPEC, load_rules()).scans[0]
    segmentation = drawn(scan)
    first = origin(scan, segmentation)
    other = replace(first, record={**first.record, "model": {"name": "toy", "sha256": "cd" * 32}})
    assert first.uid("x") != other.uid("x")
    assert re.fullmatch(r"2\.25\.\d{1,39}", str(first.uid("x")))


def test_an_empty_answer_is_written_as_one(folder, tmp_path):
    """No tumour: a SEG of empty frames, a report of zero volumes, and the JSON says so."""
    save(study(grid=OBLIQUE), folder)
    nothing = toy_engine(SPEC, lambda tiles: np.full((*tiles.shape[:4], 3), -9.0, np.float32))
    (done,) = batch(folder, tmp_path / "out", nothing)
    assert isinstance(done, Done)
    contents = json.loads(done.written.json.read_text())
    assert "no tumour found" in contents["warnings"]
    files = {kind: tmp_path / "out" / entry["file"] for kind, entry in contents["attachments"].items()}
    seg = pydicom.dcmread(files["dicom-seg"])
    assert len(seg.SegmentSequence) == 3
    assert not seg.pixel_array.any()
    sizes = measured_in(files["dicom-sr"].read_bytes())
    assert set(sizes) == {f"brainseg {name}" for name in ("WT", "TC", "ET", "NCR", "ED")}
    assert all(number == 0 for numbers in sizes.values() for number in numbers.values())
    assert "no tumour found" in str(pydicom.dcmread(files["dicom-sr"]))


def test_a_report_holds_the_volumes_of_the_json(folder, tmp_path):
    """Volume in ml by region, the mask's own; diameters of its largest piece."""
    save(study(grid=OBLIQUE), folder)
    (done,) = batch(folder, tmp_path / "out")
    contents = json.loads(done.written.json.read_text())
    sizes = measured_in((tmp_path / "out" / contents["attachments"]["dicom-sr"]["file"]).read_bytes())
    for region, ml in contents["volumes_ml"].items():
        assert sizes[f"brainseg {region}"]["118565006"] == pytest.approx(ml, abs=1e-4)
    labels = np.asarray(nibabel.load(done.written.mask).dataobj)
    assert contents["volumes_ml"]["WT"] == pytest.approx(
        np.count_nonzero(labels) * np.prod([1.0, 1.25, 3.0]) / 1000, rel=1e-4
    )


def test_a_report_holds_the_flags_of_the_json(folder, tmp_path):
    """Every reason to look twice stands in the report as a comment, word for word."""
    save(study(grid=OBLIQUE), folder)
    without = replace(SPEC, modalities=tuple(replace(m, optional=m.name == "t2") for m in SPEC.modalities))
    for path in folder.iterdir():
        if pydicom.dcmread(path, stop_before_pixels=True).SeriesNumber == 4:
            path.unlink()
    found = find_studies([folder], without, load_rules())
    with Segmenter(without, toy_engine(without), model={"name": "toy", "sha256": "ab" * 32}) as segmenter:
        (done,) = run(segmenter, found, tmp_path / "out", attachments=("dicom-seg", "dicom-sr"))
    contents = json.loads(done.written.json.read_text())
    report = pydicom.dcmread(next((tmp_path / "out").glob("*_sr.dcm")))
    texts = {str(item.TextValue) for item in report.ContentSequence if item.ValueType == "TEXT"}
    words = [flag["words"] for flag in contents["flags"]]
    assert any("t2 was not given" in word for word in words)
    assert set(words) <= texts


def test_what_does_not_read_back_is_not_kept(folder, tmp_path, monkeypatch):
    """A SEG that holds other voxels fails its scan, and neither SEG nor JSON is left."""
    save(study(grid=OBLIQUE), folder)
    real = results.make_seg

    def wrong(segmentation, *rest):
        return real(replace(segmentation, labels=np.flip(segmentation.labels, 0)), *rest)

    monkeypatch.setattr(results, "make_seg", wrong)
    (failed,) = batch(folder, tmp_path / "out")
    assert isinstance(failed, Failed)
    assert failed.error.code == "E_READBACK"
    assert not list((tmp_path / "out").glob("*.dcm"))
    assert not list((tmp_path / "out").glob("*.json"))


def test_a_done_study_is_skipped_until_it_changes(folder, tmp_path):
    """Kinds of results, a pixel, and the grid all count."""
    save(study(grid=OBLIQUE), folder)
    kinds = lambda **o: [type(x) for x in batch(folder, tmp_path / "out", **o)]  # noqa: E731
    assert kinds(kinds=("dicom-seg",)) == [Done]
    assert kinds(kinds=("dicom-seg",)) == [Skipped]
    assert kinds() == [Done]
    assert kinds() == [Skipped]
    datasets = study(grid=OBLIQUE)
    datasets[0].PixelData = b"\1\0" + datasets[0].PixelData[2:]
    for path in folder.iterdir():
        path.unlink()
    save(datasets, folder)
    assert kinds() == [Done]


CANARIES = [
    "PatientName",
    "PatientID",
    "PatientBirthName",
    "PatientMotherBirthName",
    "OtherPatientIDs",
    "PatientAddress",
    "PatientTelephoneNumbers",
    "PatientComments",
    "AdditionalPatientHistory",
    "Occupation",
    "EthnicGroup",
    "MilitaryRank",
    "AccessionNumber",
    "StudyID",
    "InstitutionName",
    "InstitutionAddress",
    "InstitutionalDepartmentName",
    "StationName",
    "ReferringPhysicianName",
    "PerformingPhysicianName",
    "NameOfPhysiciansReadingStudy",
    "OperatorsName",
    "RequestingPhysician",
    "StudyDescription",
    "ProtocolName",
    "ImageComments",
    "DeviceSerialNumber",
    "PerformedProcedureStepDescription",
    "RequestedProcedureDescription",
    "CurrentPatientLocation",
]


def infer(folder, bundle, out):
    """``brainseg-infer`` in a process of its own: what it says on stdout and stderr."""
    code = "from brainseg_runtime.cli import infer_main; infer_main()"
    command = [sys.executable, "-c", code, str(folder), "-m", str(bundle), "-o", str(out), "--engine", "ort"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.filterwarnings("ignore")
def test_the_patient_is_named_in_dicom_only(folder, tmp_path):
    """30 fields and the file names hold a canary, one where it is no valid value; nothing tells of it."""
    bundle = toy_bundle(tmp_path / "toy").folder
    datasets = study(grid=OBLIQUE)
    for dataset in datasets:
        for n, name in enumerate(CANARIES):
            setattr(dataset, name, f"CANARY{n}")
        dataset.PatientBirthDate = "CANARY in May"
    save(datasets, folder)
    for path in list(folder.iterdir()):
        path.rename(path.with_name(f"CANARY-{path.name}"))
    status, said = infer(folder, bundle, tmp_path / "out")
    assert status == 0, said
    datasets[3].ImagePositionPatient = [0, 0, 500]
    datasets[3].SOPInstanceUID = "2.25.3"
    save(datasets[3:4], folder)
    status, refused = infer(folder, bundle, tmp_path / "out")
    assert (status, "E_SERIES_IRREGULAR" in refused) == (3, True)
    told = [said, refused]
    for path in (tmp_path / "out").iterdir():
        told.append(path.name)
        if path.suffix in (".json", ".csv"):
            told.append(path.read_text())
        if path.suffix == ".gz":
            told.append(str(nibabel.load(path).header))
    assert not [text for text in told if "CANARY" in text]
    assert pydicom.dcmread(next((tmp_path / "out").glob("*_seg.dcm"))).PatientID == "CANARY1"


def test_diameters_are_those_of_all_pairs():
    """Against the distances of all voxels of each piece, on random pieces and a sheared-free oblique grid."""
    rng = np.random.default_rng(1)
    affine = np.diag([-0.9, -1.1, 3.0, 1.0])
    for _ in range(20):
        mask = rng.random((12, 11, 7)) < 0.12
        geometry = Geometry(mask.shape, affine)
        assert largest_diameter(mask, geometry) == pytest.approx(brute(mask, affine, 26), abs=1e-9)
        planes = [brute(mask[:, :, [k]], affine, 8) for k in range(7)]
        assert largest_in_slice(mask, geometry) == pytest.approx(max(planes), abs=1e-9)
    assert largest_diameter(np.zeros((8, 8, 8), bool), Geometry((8, 8, 8), affine)) == 0


def brute(mask, affine, _):
    from brainseg_runtime.labels import components

    pieces = components(mask)
    best = 0.0
    for piece in range(1, pieces.max() + 1):
        points = np.argwhere(pieces == piece) @ affine[:3, :3].T
        best = max(best, np.linalg.norm(points[:, None] - points[None], axis=-1).max())
    return best


def test_measures_of_a_known_box(folder):
    """A box of 10 x 3 x 5 voxels has its edges' lengths and diagonal."""
    scan = scan_of(folder)
    sizes = {one.name: one for one in measure(drawn(scan))}
    i, j, k = 9 * 1.0, 2 * 1.25, 4 * 3.0
    assert sizes["NCR"].volume_ml == pytest.approx(150 * 3.75 / 1000, abs=1e-4)
    assert sizes["NCR"].diameter_mm == pytest.approx(np.sqrt(i**2 + j**2 + k**2), abs=0.01)
    assert sizes["NCR"].in_slice_mm == pytest.approx(np.hypot(i, j), abs=0.01)


def test_made_series_are_what_they_say():
    """The maker of test studies itself: four modalities, one frame of reference."""
    datasets = study(grid=Grid(rows=16, columns=16))
    assert len({d.SeriesInstanceUID for d in datasets}) == 4
    assert len({d.FrameOfReferenceUID for d in datasets}) == 1
    assert Made("t1").with_header(EchoTime=3).changes == (("EchoTime", 3),)
