"""What a file says of a patient stays in it, and nothing leaves the machine."""

import gzip
import io
import json
import subprocess
import sys
import textwrap

import pytest
from brainseg_runtime.batch import run
from brainseg_runtime.console import end_with
from brainseg_runtime.scans import find_scans
from brainseg_runtime.segmenter import Segmenter
from hostile.nifti import with_dims
from toys import toy_bundle, toy_engine, toy_geometry, toy_spec, toy_volume, write_scan

FIELDS = {14: 18, 148: 80, 228: 24, 328: 16}
"""Where the words of a NIfTI header stand, and how long they are: db_name, descrip, aux_file, intent_name."""

WATCHED = """
    import json, logging, os, sys
    made, asked = [], []
    def watch(event, arguments):
        writing = event == "open" and arguments[2] & (os.O_CREAT | os.O_WRONLY)
        if writing and isinstance(arguments[0], (str, bytes)):
            made.append(os.fsdecode(arguments[0]))
        # Not bind: urllib3, where it is installed, asks its own machine so whether it knows IPv6.
        if event.startswith("socket.") and event not in ("socket.__new__", "socket.bind"):
            asked.append(event)
            raise OSError("no network")
    sys.addaudithook(watch)
    logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
    from brainseg_runtime.cli import infer_main
    report = sys.argv.pop(1)
    try:
        infer_main()
    finally:
        with open(report, "w") as file:
            json.dump({"made": made, "asked": asked}, file)
"""


def told(path) -> bytes:
    """A scan's file with a canary in every word of its header, and one in the name that gzip keeps."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    for at, size in FIELDS.items():
        content[at : at + size] = b"CANARY-header".ljust(size, b"!")[: size - 1] + b"\0"
    packed = io.BytesIO()
    with gzip.GzipFile("CANARY-name", "wb", fileobj=packed) as file:
        file.write(content)
    return packed.getvalue()


@pytest.mark.parametrize("engine", ["ort", "openvino"])
def test_words_of_a_header_go_nowhere_and_nothing_is_sent(tmp_path, engine):
    """A right scan and four wrong ones, every output asked for, every log on, no socket to be had."""
    scans = tmp_path / "CANARY-folder" / "scans"
    for n in range(5):
        write_scan(scans / f"p{n}", toy_volume(seed=n))
        for path in (scans / f"p{n}").iterdir():
            path.write_bytes(told(path))
    (scans / "p1" / "p1-t2w.nii.gz").unlink()
    for scan, damage in (("p2", lambda b: b[:-20]), ("p3", lambda _: with_dims(5, 9, 8, 5, 1, 2))):
        path = scans / scan / f"{scan}-t1c.nii.gz"
        path.write_bytes(damage(path.read_bytes()))
    write_scan(scans / "p4", toy_volume(toy_geometry((24, 24, 24))))
    (scans / "p4" / "p4-t1c.nii.gz").write_bytes(told(scans / "p0" / "p0-t1c.nii.gz"))
    bundle = toy_bundle(tmp_path / "toy").folder
    out = tmp_path / "out"
    command = [sys.executable, "-c", textwrap.dedent(WATCHED), tmp_path / "report", scans, "-m", bundle]
    options = ["-o", out, "--engine", engine, "--json", "--preview", "--report", "--gif", "--probabilities"]
    done = subprocess.run([*map(str, command), *map(str, options)], capture_output=True, check=False)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 4, done.stderr
    assert {event.get("code") for event in events if event["event"] == "failed"} == {
        "E_MODALITY_MISSING",
        "E_TRUNCATED",
        "E_NDIM",
        "E_GEOMETRY_MISMATCH",
    }
    seen = json.loads((tmp_path / "report").read_text())
    assert seen["asked"] == []
    made = [name for name in seen["made"] if "CANARY" in name]
    assert made == []
    said = {"stdout": done.stdout, "stderr": done.stderr}
    for path in out.iterdir():
        content = path.read_bytes()
        said[path.name] = gzip.decompress(content) if path.suffix == ".gz" else content
    assert len(said) == 2 + 6 + 2  # a scan's files, the table, the index
    assert [name for name, content in said.items() if "CANARY" in name or b"CANARY" in content] == []


def test_an_error_that_nobody_thought_of_tells_where_and_not_what(tmp_path, capfd):
    """Its words may be those of a header: neither a scan's failure nor a run's end repeats them."""
    spec = toy_spec()

    def function(_):
        raise KeyError("CANARY")

    write_scan(tmp_path / "scans" / "p0", toy_volume())
    with Segmenter(spec, toy_engine(spec, function)) as segmenter:
        (failed,) = run(segmenter, find_scans(tmp_path / "scans", spec), tmp_path / "out")
    assert failed.error.code == "E_UNEXPECTED"
    assert "CANARY" not in str(failed.error)
    assert "KeyError in test_privacy.py, line " in str(failed.error)
    with pytest.raises(SystemExit) as ended:
        end_with(lambda: function(0))
    _, err = capfd.readouterr()
    assert ended.value.code == 1
    assert err.endswith("E_UNEXPECTED: KeyError. Please report it.\n")
    assert "test_privacy.py" in err
    # The line of code is shown, the value that it met is not.
    assert "KeyError: 'CANARY'" not in err
