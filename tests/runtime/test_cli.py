"""What a user types, and the status it ends with."""

import json
import os
import signal
import subprocess
import sys
import time
from hashlib import sha256

import numpy as np
import pytest
from brainseg_runtime import default_model
from toys import toy_bundle, toy_volume, write_scan


@pytest.fixture
def bundle(tmp_path):
    return toy_bundle(tmp_path / "bundle").folder


@pytest.fixture
def scans(tmp_path):
    for n in range(2):
        write_scan(tmp_path / "scans" / f"p{n}", toy_volume(seed=n))
    return tmp_path / "scans"


def test_a_folder_of_scans_is_segmented(infer, bundle, scans, tmp_path):
    """Status 0, a sentence a scan with volumes and times, and the word on medical use."""
    status, out, err = infer(scans, "-m", bundle, "-o", tmp_path / "out")
    assert (status, err) == (0, "")
    assert "p0: WT" in out
    assert "p1: WT" in out
    assert "not a medical device" in out
    assert (tmp_path / "out" / "volumes.csv").exists()


def test_where_no_model_is_named_the_default_one_answers_and_says_so(infer, scans, tmp_path, monkeypatch):
    """The bundle inside the distribution of that name; where it is not installed, status 5 and what to do."""
    monkeypatch.setattr(default_model, "MODULE", "brainseg_made_for_a_test")
    status, _, err = infer(scans, "-o", tmp_path / "out")
    assert status == 5
    assert "E_EXTRA_MISSING" in err
    assert "--model" in err
    package = tmp_path / "site" / default_model.MODULE
    toy_bundle(package / "bundle")
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(package.parent)
    status, out, _ = infer(scans, "-o", tmp_path / "out")
    assert status == 0
    assert ", the default, engine" in out
    assert "the default" not in infer(scans, "-m", package / "bundle", "-o", tmp_path / "other")[1]


def test_everything_that_can_be_asked_for_is_written(infer, bundle, scans, tmp_path):
    """Pictures, pages, an index and region maps."""
    out = tmp_path / "out"
    status, _, err = infer(
        scans, "-m", bundle, "-o", out, "--preview", "--gif", "--report", "--probabilities"
    )
    assert (status, err) == (0, "")
    ends = ("_seg.nii.gz", "_seg.json", "_seg.png", "_seg.gif", "_report.html", "_prob.nii.gz")
    expected = {f"p{n}{end}" for n in range(2) for end in ends} | {"volumes.csv", "index.html"}
    assert {path.name for path in out.iterdir()} == expected


def test_json_lines_are_all_that_stdout_holds(infer, bundle, scans, tmp_path):
    """Each line is an object with a schema and an event; failures too."""
    (scans / "p1" / "p1-t1c.nii.gz").write_bytes(b"")
    status, out, err = infer(scans, "-m", bundle, "-o", tmp_path / "out", "--json")
    events = [json.loads(line) for line in out.splitlines()]
    assert status == 4
    assert err == ""
    assert [event["event"] for event in events] == ["start", "done", "failed"]
    assert events[-1]["code"] == "E_EMPTY"
    assert all(event["schema"] == 1 for event in events)


def test_when_every_scan_is_refused_the_status_is_3(infer, bundle, scans, tmp_path):
    """No result, a reason for each, on stderr."""
    for n in range(2):
        (scans / f"p{n}" / f"p{n}-t1c.nii.gz").unlink()
    status, out, err = infer(scans, "-m", bundle, "-o", tmp_path / "out", "-q")
    assert status == 3
    assert out == ""
    assert err.count("E_MODALITY_MISSING") == 2
    status, _, err = infer(tmp_path / "nowhere", "-m", bundle)
    assert (status, "E_INPUT_MISSING" in err) == (3, True)


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("--device", "cuda:0"), 5),
        (("--precision", "fp16"), 6),
        (("-m", "/nowhere"), 6),
        (("--engine", "abacus"), 2),
        (("--batch", "0"), 2),
        (("--surprise",), 2),
        (("-o", "/proc/version"), 7),
        (("--require-signature", "/nowhere"), 2),
    ],
    ids=str,
)
def test_what_stops_a_run_has_its_own_status(infer, bundle, scans, tmp_path, arguments, status):
    """Usage 2, engine 5, model 6, output 7."""
    given = (scans, "-m", bundle, "-o", tmp_path / "out", *arguments)
    assert infer(*given)[0] == status


@pytest.fixture
def keys(tmp_path):
    """A private key and its public one."""
    pytest.importorskip("cryptography", reason="the extra trust is not installed (CI installs it)")
    from brainseg_runtime.signature import make_keys

    make_keys(tmp_path / "key.pem", tmp_path / "key.pub.pem")
    return tmp_path / "key.pem", tmp_path / "key.pub.pem"


def test_a_model_without_the_demanded_signature_does_not_run(infer, bundle, scans, tmp_path, keys):
    """Status 6 and nothing written; signed by the operator's key, it runs."""
    from brainseg_runtime.bundle import sign_bundle

    given = (scans, "-m", bundle, "-o", tmp_path / "out", "--require-signature", keys[1])
    # TensorRT has its plan built before the rest is opened: the signature comes before that too.
    for more in ((), ("--engine", "trt"), ("--explain-matching",)):
        status, _, err = infer(*given, *more)
        assert (status, "E_SIGNATURE" in err) == (6, True), more
    assert not (tmp_path / "out").exists()
    sign_bundle(bundle, keys[0])
    assert infer(*given)[0] == 0


def test_every_verb_that_runs_a_model_asks_for_the_signature(infer, brainseg, bundle, scans, tmp_path, keys):
    """It ends with 6 before the graph is looked at; signed, it goes on."""
    from brainseg_runtime.bundle import sign_bundle

    assert infer(scans, "-m", bundle, "-o", tmp_path / "out")[0] == 0
    record = tmp_path / "out" / "p0_seg.json"
    asked = ("--require-signature", keys[1])
    verbs = {
        ("selftest", bundle): 0,
        ("verify-run", record, scans, "-m", bundle): 0,
        ("plans", "build", bundle, "--device", "cuda:99"): 5,
    }
    for verb in verbs:
        status, _, err = brainseg(*verb, *asked)
        assert (status, "E_SIGNATURE" in err) == (6, True), verb
    sign_bundle(bundle, keys[0])
    assert {verb: brainseg(*verb, *asked)[0] for verb in verbs} == verbs


def test_files_that_are_not_as_listed_are_refused_and_the_others_done(infer, bundle, scans, tmp_path):
    """Status 4, the code of the list, also where the result of the file that was listed stands."""
    sums = scans / "SHA256SUMS"
    files = sorted(scans.rglob("*.nii.gz"))
    lines = [f"{sha256(path.read_bytes()).hexdigest()}  {path.relative_to(scans)}" for path in files]
    sums.write_text("\n".join(lines) + "\n")
    given = (scans, "-m", bundle, "-o", tmp_path / "out", "--checksums", sums)
    assert infer(*given)[0] == 0
    write_scan(scans / "p1", toy_volume(seed=7))
    status, _, err = infer(*given)
    assert (status, err.count("E_CHECKSUM")) == (4, 1)
    assert infer(*given[:-1], tmp_path / "nowhere")[0] == 2


def test_a_scan_that_takes_too_long_is_refused(infer, bundle, scans, tmp_path):
    """Status 8 where all do; nothing is written for them."""
    given = (scans, "-m", bundle, "-o", tmp_path / "out")
    status, _, err = infer(*given, "--timeout", "0")
    assert (status, err.count("E_TIMEOUT")) == (8, 2)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
    assert infer(*given, "--timeout", "600")[0] == 0


def test_a_file_that_is_no_record_is_told_and_the_run_ends_well(infer, bundle, scans, tmp_path):
    """Status 0, a warning in words or as an event, and a table of the rest."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine_seg.json").write_text("{")
    status, said, err = infer(scans, "-m", bundle, "-o", out)
    assert (status, err) == (0, "")
    assert "warning: mine_seg.json" in said
    assert len((out / "volumes.csv").read_text().splitlines()) == 3
    status, said, _ = infer(scans, "-m", bundle, "-o", out, "--json")
    event = json.loads(said.splitlines()[-1])
    assert (status, event["event"], "mine_seg.json" in event["message"]) == (0, "warning", True)


def test_matching_is_explained_without_running(infer, bundle, scans, tmp_path):
    """Every file is shown with what it was taken for."""
    status, out, _ = infer(scans, "-m", bundle, "-o", tmp_path / "out", "--explain-matching")
    assert status == 0
    assert "p0-t2f.nii.gz" in out
    assert "flair" in out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=str)
def test_an_interrupted_run_ends_with_130_and_leaves_no_half_file(bundle, scans, tmp_path, number):
    """What is under a final name is whole, and a second run completes the rest."""
    for n in range(2, 12):
        write_scan(scans / f"p{n:02}", toy_volume(seed=n))
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-c",
        "from brainseg_runtime.cli import infer_main; infer_main()",
        *map(str, (scans, "-m", bundle, "-o", out)),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not out.exists() or not any(out.glob("*.json")):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 130
    for path in out.glob("*_seg.json"):
        assert (out / json.loads(path.read_text())["mask"]["file"]).exists()
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
    again = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert again.returncode == 0
    assert "already done" in again.stdout
    assert len(list(out.glob("*_seg.json"))) == 12


def test_importing_the_runtime_loads_no_engine():
    """A fresh interpreter has neither an engine nor a training framework in it, and no DICOM library."""
    code = (
        "import sys, brainseg_runtime, brainseg_runtime.cli; dicom = 'pydicom' in sys.modules; "
        "from brainseg_runtime import load, read, write, find_scans; "
        "heavy = ('onnxruntime', 'onnx', 'keras', 'tensorflow', 'torch', 'highdicom');"
        # nibabel takes pydicom and scipy wherever it finds them, and pydicom takes pillow.
        "print(dicom, [name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert done.stdout.strip() == "False []", done.stderr


def test_the_api_of_the_readme_works(bundle, scans, tmp_path):
    """Four verbs: load, find, read, write."""
    from brainseg_runtime import find_scans, load, read, write

    with load(bundle) as segmenter:
        for scan in find_scans(scans, segmenter.spec).scans:
            written = write(segmenter.segment(read(scan)), tmp_path / "out")
            assert written.mask.exists()
            assert np.isfinite(list(written.contents["volumes_ml"].values())).all()


def test_a_dry_run_tells_the_plan_and_writes_nothing(infer, bundle, scans, tmp_path):
    """Passes, tile and memory of every scan, in words and in JSON."""
    status, out, _ = infer(scans, "-m", bundle, "-o", tmp_path / "out", "--dry-run")
    assert (status, not (tmp_path / "out").exists()) == (0, True)
    assert "p0: 1 x 16x16x16 voxels, about " in out
    _, out, _ = infer(scans, "-m", bundle, "-o", tmp_path / "out", "--dry-run", "--json")
    planned = json.loads(out.splitlines()[1])
    assert (planned["event"], planned["passes"], planned["tile"]) == ("planned", 1, [16, 16, 16])


@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=str)
def test_what_cannot_fit_ends_with_8_before_it_starts(infer, bundle, scans, tmp_path, dry):
    """A limit in MB is kept by refusing, with the words that mend it."""
    status, _, err = infer(scans, "-m", bundle, "-o", tmp_path / "out", "--max-memory", "100", *dry)
    assert status == 8
    assert "E_MEMORY" in err
    assert "--max-memory" in err
    assert not list((tmp_path / "out").glob("*_seg*"))


def test_tile_and_overlap_are_recorded(infer, bundle, scans, tmp_path):
    """What changes results is in the scan's JSON; what the network cannot take is a usage error."""
    status, _, _ = infer(scans, "-m", bundle, "-o", tmp_path / "out", "--tile", "8", "--overlap", "0.25")
    assert status == 0
    options = json.loads((tmp_path / "out" / "p0_seg.json").read_bytes())["options"]
    assert (options["scheme"], options["tile"], options["overlap"]) == ("tiles", [8, 8, 8], 0.25)
    assert infer(scans, "-m", bundle, "-o", tmp_path / "out", "--tile", "7")[0] == 2


@pytest.mark.parametrize("engine", ["openvino", "ort"])
def test_an_engine_that_is_not_installed_ends_with_5(infer, bundle, scans, tmp_path, monkeypatch, engine):
    """The line that installs it, and never another engine."""
    monkeypatch.setitem(sys.modules, {"ort": "onnxruntime"}.get(engine, engine), None)
    status, out, err = infer(scans, "-m", bundle, "-o", tmp_path / "out", "--engine", engine)
    assert (status, out) == (5, "")
    assert "pip install" in err


def test_the_start_says_which_engine_and_why(infer, bundle, scans, tmp_path, monkeypatch):
    """``auto`` is never silent."""
    _, out, _ = infer(scans, "-m", bundle, "-o", tmp_path / "out")
    assert "openvino" in out.splitlines()[0]
    assert "the fastest on this device" in out.splitlines()[0]
    monkeypatch.setitem(sys.modules, "openvino", None)
    _, out, _ = infer(scans, "-m", bundle, "-o", tmp_path / "other", "--json")
    assert json.loads(out.splitlines()[0])["engine_choice"] == "openvino is not installed"
    record = json.loads((tmp_path / "other" / "p0_seg.json").read_bytes())
    assert record["engine"]["engine"] == "ort"
    assert record["engine_choice"] == "openvino is not installed"


def test_peak_memory_is_that_of_the_run_and_not_of_who_started_it(bundle, scans, tmp_path):
    """A large program that starts a run does not show in the run's record."""
    ballast = np.ones(150_000_000)
    code = "from brainseg_runtime.cli import infer_main; infer_main()"
    command = [sys.executable, "-c", code, str(scans), "-m", str(bundle), "-o", str(tmp_path / "out")]
    subprocess.run(command, check=True, capture_output=True)
    contents = json.loads((tmp_path / "out" / "p0_seg.json").read_text())
    assert 20 < contents["peak_memory_mb"] < ballast.nbytes / 1e6 / 2
