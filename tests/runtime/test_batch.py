"""A batch: every scan gets its result or its reason, and a second run does no work twice."""

import csv
import json

import nibabel
import numpy as np
import pytest
from brainseg_runtime.batch import Done, Failed, Skipped, exit_status, run
from brainseg_runtime.errors import BudgetExceeded, OutputUnwritable
from brainseg_runtime.scans import find_scans
from brainseg_runtime.segmenter import Segmenter, load
from toys import toy_bundle, toy_engine, toy_spec, toy_volume, write_scan


@pytest.fixture
def scans(tmp_path):
    """Three sound scans in a folder."""
    for n in range(3):
        write_scan(tmp_path / "scans" / f"p{n}", toy_volume(seed=n))
    return tmp_path / "scans"


@pytest.fixture
def segmenter():
    """The toy network, without a bundle."""
    spec = toy_spec()
    with Segmenter(spec, toy_engine(spec)) as opened:
        yield opened


def batch(segmenter, scans, out, **options):
    return list(run(segmenter, find_scans(scans, segmenter.spec), out, **options))


def table(out):
    with (out / "volumes.csv").open() as file:
        return list(csv.DictReader(file))


def test_every_scan_leaves_mask_json_and_row(segmenter, scans, tmp_path):
    """The mask lies on the scan's grid, the JSON agrees with it, the table has a row a scan."""
    outcomes = batch(segmenter, scans, tmp_path / "out")
    assert [type(outcome) for outcome in outcomes] == [Done] * 3
    assert exit_status(outcomes) == 0
    for n in range(3):
        image = nibabel.load(tmp_path / "out" / f"p{n}_seg.nii.gz")
        source = nibabel.load(scans / f"p{n}" / f"p{n}-t1c.nii.gz")
        assert image.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(image.affine, source.affine)
        contents = json.loads((tmp_path / "out" / f"p{n}_seg.json").read_text())
        count = np.count_nonzero(np.asarray(image.dataobj))
        assert contents["volumes_ml"]["WT"] == pytest.approx(count / 1000, abs=1e-4)
        assert {source["modality"] for source in contents["inputs"]} == {"t1", "t1c", "t2", "flair"}
        assert contents["reference"] == "t1c"
        assert set(contents["seconds"]) == {"read", "prepare", "infer", "restore", "write"}
        assert contents["peak_memory_mb"] > 10
        assert "Not a medical device" in contents["disclaimer"]
    rows = table(tmp_path / "out")
    assert [row["scan"] for row in rows] == ["p0", "p1", "p2"]
    assert list(rows[0]) == ["scan", "model", "WT_ml", "TC_ml", "ET_ml", "flags"]
    told = [json.loads((tmp_path / "out" / f"p{n}_seg.json").read_text())["flags"] for n in range(3)]
    assert [set(row["flags"].split()) for row in rows] == [{flag["code"] for flag in one} for one in told]
    assert any(told)


def test_a_done_scan_is_skipped_until_something_about_it_changes(segmenter, scans, tmp_path):
    """Inputs, model, options and the mask itself all count; asking for it always redoes."""
    out = tmp_path / "out"
    batch(segmenter, scans, out)
    kinds = lambda **o: [type(x) for x in batch(segmenter, scans, out, **o)]  # noqa: E731
    assert kinds() == [Skipped] * 3
    assert kinds(overwrite=True) == [Done] * 3
    write_scan(scans / "p1", toy_volume(seed=9))
    assert kinds() == [Skipped, Done, Skipped]
    (out / "p2_seg.nii.gz").write_bytes(b"damaged")
    assert kinds() == [Skipped, Skipped, Done]
    (out / "p0_seg.json").write_text("{")
    assert kinds() == [Done, Skipped, Skipped]
    assert kinds(label_scheme="brats2021") == [Done] * 3
    other = Segmenter(segmenter.spec, segmenter.engine, model={"name": "other"})
    assert [type(x) for x in batch(other, scans, out, label_scheme="brats2021")] == [Done] * 3


def test_the_table_says_which_model_each_row_is_of(scans, tmp_path):
    """By the start of its digest, also where rows of an earlier model stand beside new ones."""
    one, two = (toy_bundle(tmp_path / name, toy_spec(name=name)) for name in ("one", "two"))
    with load(one.folder, "ort") as segmenter:
        batch(segmenter, scans, tmp_path / "out")
    with load(two.folder, "ort") as segmenter:
        batch(segmenter, scans / "p1", tmp_path / "out")
    told = {row["scan"]: row["model"] for row in table(tmp_path / "out")}
    assert told == {"p0": one.sha256[:12], "p1": two.sha256[:12], "p2": one.sha256[:12]}


def test_the_table_has_no_row_of_a_scan_that_failed_now(segmenter, scans, tmp_path):
    """Its earlier files stay and are of another state of the scan; without any row there is no table."""
    out = tmp_path / "out"
    batch(segmenter, scans, out)
    (scans / "p0" / "p0-t1c.nii.gz").write_bytes(b"")
    (scans / "p2" / "p2-t2f.nii.gz").unlink()
    assert [type(o) for o in batch(segmenter, scans, out)] == [Failed, Failed, Skipped]
    assert [row["scan"] for row in table(out)] == ["p1"]
    assert (out / "p0_seg.json").exists()
    for scan in ("p0", "p1"):
        (out / f"{scan}_seg.json").unlink()
    batch(segmenter, scans / "p2", out)
    assert not (out / "volumes.csv").exists()


FOREIGN = {
    "half": b'{"scan": "x", "volumes_ml": {"WT"',
    "no text": b"\xff\x00",
    "a list": b"[]",
    "a word": b'"x"',
    "deep": b"[" * 200_000,
    "without volumes": b'{"scan": "x", "model": {"name": "m"}}',
    "volumes that are none": b'{"scan": "x", "model": {}, "volumes_ml": {"WT": "many"}}',
    "volumes in a list": b'{"scan": "x", "model": {}, "volumes_ml": [1]}',
    "a type in a list": b'{"scan": "x", "model": {}, "volumes_ml": {"WT": 1}, "type": ["x"]}',
    "a model by name": b'{"scan": "x", "model": "m", "volumes_ml": {"WT": 1}}',
    "flags that are none": b'{"scan": "x", "model": {}, "volumes_ml": {"WT": 1}, "flags": [3]}',
    "attachments that are none": b'{"scan": "x", "model": {}, "volumes_ml": {"WT": 1}, "attachments": 3}',
    "of another scan": b'{"scan": "p0", "model": {}, "volumes_ml": {"WT": 1}}',
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_what_is_no_record_is_passed_over_and_told(segmenter, scans, tmp_path, content):
    """Table and index hold the others; the run ends well, whatever lies in its folder."""
    out, told = tmp_path / "out", []
    out.mkdir()
    (out / "x_seg.json").write_bytes(content)
    outcomes = batch(segmenter, scans / "p0", out, attachments=["report"], warn=told.append)
    assert [type(outcome) for outcome in outcomes] == [Done]
    assert [row["scan"] for row in table(out)] == ["p0"]
    assert (out / "index.html").read_text().count("<li>") == 1
    assert len(told) == 1
    assert "x_seg.json" in told[0]


def test_a_damaged_record_of_a_scan_is_made_anew(segmenter, scans, tmp_path):
    """Whatever it holds; nothing is left to tell."""
    out, told = tmp_path / "out", []
    out.mkdir()
    for content in FOREIGN.values():
        (out / "p0_seg.json").write_bytes(content)
        assert [type(o) for o in batch(segmenter, scans / "p0", out, warn=told.append)] == [Done]
    assert told == []


def test_one_bad_scan_does_not_stop_the_others(segmenter, scans, tmp_path):
    """A refused scan leaves nothing behind and its code; the rest are done; the status is 4."""
    path = scans / "p1" / "p1-t2w.nii.gz"
    path.write_bytes(path.read_bytes()[:-40])
    (scans / "p2" / "p2-t2f.nii.gz").unlink()
    outcomes = batch(segmenter, scans, tmp_path / "out")
    found = {o.scan: o.error.code if isinstance(o, Failed) else "done" for o in outcomes}
    assert found == {"p0": "done", "p1": "E_TRUNCATED", "p2": "E_MODALITY_MISSING"}
    assert exit_status(outcomes) == 4
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "p0_seg.json",
        "p0_seg.nii.gz",
        "volumes.csv",
    ]


def test_a_failing_network_fails_the_scan_and_says_so(scans, tmp_path):
    """NaN from the network, no memory, and what nobody thought of each become that scan's failure."""
    spec = toy_spec()
    answers = iter([np.nan, MemoryError(), KeyError("surprise")])

    def function(tiles):
        answer = next(answers)
        if isinstance(answer, BaseException):
            raise answer
        return np.full((*tiles.shape[:4], 3), answer, np.float32)

    spec = toy_spec(tile=(32, 32, 32))
    outcomes = batch(Segmenter(spec, toy_engine(spec, function)), scans, tmp_path / "out")
    assert [o.error.code for o in outcomes] == ["E_ENGINE_FAILED", "E_MEMORY", "E_UNEXPECTED"]
    assert isinstance(outcomes[1].error, BudgetExceeded)
    assert exit_status(outcomes) == 3
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_an_output_that_cannot_be_written_stops_the_run(segmenter, scans, tmp_path):
    """A file where the output folder should be: no scan is computed for nothing."""
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputUnwritable, match="E_OUTPUT"):
        batch(segmenter, scans, tmp_path / "out")


@pytest.mark.parametrize("scheme", ["brats2023", "brats2021", "regions"])
def test_label_schemes_hold_the_same_regions(segmenter, scans, tmp_path, scheme):
    """ET is 3, or 4, or the last of the region maps; the voxels are the same."""
    batch(segmenter, scans, tmp_path / "base")
    batch(segmenter, scans, tmp_path / scheme, label_scheme=scheme)
    base = np.asarray(nibabel.load(tmp_path / "base" / "p0_seg.nii.gz").dataobj)
    image = np.asarray(nibabel.load(tmp_path / scheme / "p0_seg.nii.gz").dataobj)
    enhancing = {"brats2023": image == 3, "brats2021": image == 4}.get(scheme)
    if enhancing is None:
        enhancing = image[..., 2] == 1
        np.testing.assert_array_equal(image[..., 0] == 1, base > 0)
    np.testing.assert_array_equal(enhancing, base == 3)
    contents = json.loads((tmp_path / scheme / "p0_seg.json").read_text())
    assert contents["options"]["label_scheme"] == scheme


def test_a_preview_shows_the_lesion(scans, tmp_path):
    """The picture has colours where a tumour was found."""
    from PIL import Image

    toy_bundle(tmp_path / "toy")
    with load(tmp_path / "toy") as opened:
        batch(opened, scans, tmp_path / "out", attachments=["preview"])
    pixels = np.asarray(Image.open(tmp_path / "out" / "p0_seg.png").convert("RGB")).astype(int)
    coloured = (pixels.max(-1) - pixels.min(-1)) > 40
    assert 0.001 < coloured.mean() < 0.9
