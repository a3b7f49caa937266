"""A run made again from its record gives the same mask, or says what is different."""

import json
import resource
import signal
import sys
import tempfile

import pytest
from brainseg_runtime import cli, rerun
from brainseg_runtime.errors import BundleInvalid, OutputUnwritable, ScanRefused, UsageRefused
from brainseg_runtime.outputs import write
from brainseg_runtime.rerun import verify_run
from brainseg_runtime.scans import find_scans, read
from brainseg_runtime.segmenter import load
from toys import toy_bundle, toy_spec, toy_volume, write_scan

WAYS = {
    "as it is": {},
    "other tiles": {"tile": 8, "overlap": 0.25},
    "mirrored": {"tta": True},
    "in batches": {"batch": 3},
    "openvino": {"engine": "openvino"},
}
SCHEMES = {"tiles": {}, "whole": {"scheme": "whole", "divisor": (8, 8, 8)}}


@pytest.fixture
def made(tmp_path, request):
    """A scan, a bundle and a run's record."""
    write_scan(tmp_path / "scans" / "p0", toy_volume())
    toy_bundle(tmp_path / "toy", toy_spec(**SCHEMES[getattr(request, "param", "tiles")]))

    def run(label_scheme="brats2023", engine="ort", **options):
        with load(tmp_path / "toy", engine, **options) as segmenter:
            (scan,) = find_scans(tmp_path / "scans", segmenter.spec).scans
            return write(segmenter.segment(read(scan)), tmp_path / "out", label_scheme=label_scheme)

    return run


@pytest.mark.parametrize("made", SCHEMES, indirect=True)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_run_is_repeated_as_it_was(made, tmp_path, way):
    """Whatever its model's scheme, its engine, tiles, mirrors and batches were."""
    told = verify_run(made(**way).json, [tmp_path / "scans"], [tmp_path / "toy"])
    assert told.same
    assert told.engine == ""
    assert told.recorded == told.repeated == told.standing


def test_the_label_scheme_is_the_records(made, tmp_path):
    """Another numbering is another mask."""
    assert verify_run(made("brats2021").json, [tmp_path / "scans"], [tmp_path / "toy"]).same


def test_a_changed_mask_and_a_changed_record_are_seen(made, tmp_path):
    """Either makes the run another one; a mask that was taken away does not."""
    written = made()
    written.mask.write_bytes(written.mask.read_bytes() + b"\0")
    assert not verify_run(written.json, [tmp_path / "scans"], [tmp_path / "toy"]).same
    written.mask.unlink()
    assert verify_run(written.json, [tmp_path / "scans"], [tmp_path / "toy"]).same
    record = json.loads(written.json.read_text())
    record["mask"]["sha256"] = "0" * 64
    written.json.write_text(json.dumps(record))
    assert not verify_run(written.json, [tmp_path / "scans"], [tmp_path / "toy"]).same


def test_other_files_and_other_models_are_refused(made, tmp_path):
    """They would prove nothing."""
    record = made().json
    toy_bundle(tmp_path / "other", toy_spec(name="other"))
    with pytest.raises(BundleInvalid, match="E_RUN_DIFFERS"):
        verify_run(record, [tmp_path / "scans"], [tmp_path / "other"])
    write_scan(tmp_path / "scans" / "p0", toy_volume(seed=1))
    with pytest.raises(ScanRefused, match="E_CHECKSUM"):
        verify_run(record, [tmp_path / "scans"], [tmp_path / "toy"])
    write_scan(tmp_path / "others" / "p9", toy_volume())
    with pytest.raises(UsageRefused, match="E_INPUT_MISSING"):
        verify_run(record, [tmp_path / "others"], [tmp_path / "toy"])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"scan": "p0"}', "{" * 9])
def test_what_is_no_record_is_the_users_mistake(made, tmp_path, text):
    """Status 2."""
    (tmp_path / "x_seg.json").write_text(text)
    made()
    with pytest.raises(UsageRefused, match="E_USAGE"):
        verify_run(tmp_path / "x_seg.json", [tmp_path / "scans"], [tmp_path / "toy"])


@pytest.mark.parametrize(
    "change", [{"engine": "abacus"}, {"precision": "fp8"}, {"label_scheme": "x"}, {"tile": 8}], ids=str
)
def test_a_record_of_what_brainseg_cannot_do_is_none(made, tmp_path, change):
    """It is not by this runtime, or was changed: status 2 before anything is opened."""
    path = made(tile=12).json
    told = json.loads(path.read_text())
    for part in ("engine", "options"):
        told[part] |= {key: value for key, value in change.items() if key in told[part]}
    path.write_text(json.dumps(told))
    with pytest.raises(UsageRefused, match="is no record of a run"):
        verify_run(path, [tmp_path / "scans"], [tmp_path / "nowhere"])


def test_no_room_for_the_new_mask_is_not_blamed_on_the_record(made, tmp_path, monkeypatch):
    """Status 7, whether there is no room for the mask or no folder for it."""
    given = (made().json, [tmp_path / "scans"], [tmp_path / "toy"])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))  # bytes: less than any mask
    try:
        with pytest.raises(OutputUnwritable, match="E_OUTPUT"):
            verify_run(*given)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(OutputUnwritable, match="E_OUTPUT"):
        verify_run(*given)


def test_what_nobody_thought_of_is_not_blamed_on_the_record(made, tmp_path, monkeypatch):
    """An error of the program stays one, so that it is reported."""
    given = (made().json, [tmp_path / "scans"], [tmp_path / "toy"])
    monkeypatch.setattr(rerun, "kind_of", {}.__getitem__)
    with pytest.raises((KeyError, TypeError)):
        verify_run(*given)


def test_the_verb_says_it_and_ends_with_its_status(made, tmp_path, monkeypatch, capfd):
    """0 the same, 6 another mask, 2 no record."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    written = made()

    def brainseg(record):
        given = ["brainseg", "verify-run", str(record), str(tmp_path / "scans"), "-m", str(tmp_path / "toy")]
        monkeypatch.setattr(sys, "argv", given)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capfd.readouterr()

    status, out, err = brainseg(written.json)
    assert (status, err) == (0, "")
    assert written.contents["mask"]["sha256"] in out
    written.mask.write_bytes(b"other")
    status, _, err = brainseg(written.json)
    assert (status, "E_RUN_DIFFERS" in err) == (6, True)
    assert brainseg(tmp_path / "nowhere.json")[0] == 2
    for number, handler in handlers.items():
        signal.signal(number, handler)
