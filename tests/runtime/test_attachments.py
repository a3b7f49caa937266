"""What is asked for beside mask and JSON is there, whole, and of the same result."""

import hashlib
import json

import pytest
from brainseg_runtime import extras
from brainseg_runtime.attachments import require
from brainseg_runtime.batch import Done, Skipped, run
from brainseg_runtime.errors import EngineUnavailable
from brainseg_runtime.outputs import attachment_path
from brainseg_runtime.scans import find_scans
from brainseg_runtime.segmenter import Segmenter
from toys import toy_engine, toy_spec, toy_volume, write_scan

KINDS = ("probabilities", "preview", "gif", "report")


@pytest.fixture
def infer(tmp_path):
    """Segment one toy scan with some attachments: what became of it, and what its JSON says."""
    write_scan(tmp_path / "scans" / "p0", toy_volume())
    spec = toy_spec()
    found = find_scans(tmp_path / "scans", spec)

    def call(*kinds, **options):
        with Segmenter(spec, toy_engine(spec)) as segmenter:
            (outcome,) = run(segmenter, found, tmp_path / "out", attachments=kinds, **options)
        return type(outcome), json.loads((tmp_path / "out" / "p0_seg.json").read_bytes())

    return call


def test_attachments_are_named_hashed_and_timed(infer, tmp_path):
    """The JSON, written last, says which files there are, with their hashes."""
    kind, contents = infer(*KINDS)
    assert kind is Done
    assert set(contents["attachments"]) == set(KINDS)
    for name, told in contents["attachments"].items():
        path = attachment_path(tmp_path / "out", "p0", name)
        assert told["file"] == path.name
        assert told["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert contents["seconds"][name] >= 0


@pytest.mark.parametrize("name", KINDS)
def test_a_scan_is_done_when_what_is_asked_for_now_stands(infer, tmp_path, name):
    """Missing or altered it is made anew; more than is asked for does no harm."""
    path = attachment_path(tmp_path / "out", "p0", name)
    assert infer()[0] is Done
    assert infer(name)[0] is Done
    assert infer(name)[0] is Skipped
    assert infer()[0] is Skipped
    path.write_bytes(path.read_bytes() + b" ")
    assert infer(name)[0] is Done
    path.unlink()
    assert infer(name)[0] is Done


def test_pictures_of_an_earlier_result_do_not_stand_beside_a_new_mask(infer, tmp_path):
    """What is not made anew with the mask is removed."""
    infer(*KINDS)
    kind, contents = infer("preview", overwrite=True)
    assert kind is Done
    assert set(contents["attachments"]) == {"preview"}
    left = {name for name in KINDS if attachment_path(tmp_path / "out", "p0", name).exists()}
    assert left == {"preview"}


def test_without_pillow_pictures_are_refused_before_any_work(monkeypatch):
    """With the line that installs it; region maps need none."""
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(EngineUnavailable, match=r"brainseg-runtime\[report\]"):
        require(["report"])
    require(["probabilities"])
