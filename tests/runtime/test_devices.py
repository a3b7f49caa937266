"""Several devices are several processes over one list of scans, and leave what one device leaves."""

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
import zipfile
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from brainseg_runtime import devices
from brainseg_runtime import segmenter as chapter
from brainseg_runtime.batch import Done, Failed, Skipped, exit_status, run, segment_each
from brainseg_runtime.devices import Workers, _serve, devices_of, share
from brainseg_runtime.engines.function import FunctionEngine
from brainseg_runtime.errors import OutputUnwritable, UsageRefused
from brainseg_runtime.memory import machine_memory
from brainseg_runtime.scans import find_scans
from brainseg_runtime.segmenter import Segmenter, load
from toys import toy_bundle, toy_engine, toy_spec, toy_volume, write_scan

TOLD_OF_THE_RUN = ("seconds", "peak_memory_mb", "next_scan", "attachments")
"""What the records of two runs differ in: the last is the hash of a page, which tells the seconds."""


@pytest.fixture
def bundle(tmp_path):
    return toy_bundle(tmp_path / "bundle").folder


@pytest.fixture
def scans(tmp_path):
    for n in range(8):
        write_scan(tmp_path / "scans" / f"p{n}", toy_volume(seed=n))
    return tmp_path / "scans"


@pytest.fixture
def infer(infer):
    """Run ``brainseg-infer --json`` in this process: (status, events, stderr); no other process is left."""

    def call(*arguments):
        status, out, err = infer("--json", *arguments)
        assert multiprocessing.active_children() == []
        return status, [json.loads(line) for line in out.splitlines()], err

    return call


def workers(bundle, devices=("cpu", "cpu")):
    return Workers(partial(load, [bundle], "ort", threads=1), devices)


def record(path):
    told = json.loads(path.read_bytes())
    return {key: value for key, value in told.items() if key not in TOLD_OF_THE_RUN}


DEAF = """
import multiprocessing, signal
from brainseg_runtime.devices import Worker, Workers

def deaf(connection):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection.send("ready")
    try:
        connection.recv()
    except EOFError:
        pass

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=deaf, args=(theirs,))
    process.start()
    theirs.close()
    ours.recv()
    opened = Workers.__new__(Workers)
    opened._workers = [Worker("cpu", process, ours)]
    opened.close()
    print(process.exitcode)
"""


def test_a_process_that_a_signal_did_not_end_ends_with_its_pipe(tmp_path):
    """Python drops what a handler raises within a finaliser: the process is not left to be killed then."""
    script = tmp_path / "script.py"
    script.write_text(DEAF)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"


def test_two_devices_leave_what_one_leaves(infer, bundle, scans, tmp_path):
    """Masks, table, index byte for byte, records but for times; the same outcomes; a second run skips all."""
    (scans / "p1" / "p1-t1c.nii.gz").write_bytes(b"")
    (scans / "p2" / "p2-t2f.nii.gz").unlink()
    given = (scans, "-m", bundle, "--report", "-o")
    status, events, _ = infer(*given, tmp_path / "one")
    status_of_two, events_of_two, err = infer(*given, tmp_path / "two", "--device", "cpu,cpu")
    assert (status, status_of_two, err) == (4, 4, "")
    told = [
        sorted((e["event"], e["scan"], e.get("code"), str(e.get("volumes_ml"))) for e in run[1:])
        for run in (events, events_of_two)
    ]
    assert told[0] == told[1]
    assert events_of_two[0]["engine"] == {**events[0]["engine"], "device": "cpu,cpu"}
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert names == {path.name for path in (tmp_path / "two").iterdir()}
    assert len(names) == 6 * 3 + 2
    for name in names:
        one, two = tmp_path / "one" / name, tmp_path / "two" / name
        if name.endswith(".json"):
            assert record(one) == record(two)
        elif not name.endswith("_report.html"):  # a page tells the times
            assert one.read_bytes() == two.read_bytes(), name
    (tmp_path / "one" / "x_seg.json").write_text("{")
    (scans / "p3" / "p3-t1c.nii.gz").write_bytes(b"")
    _, again, _ = infer(*given, tmp_path / "one", "--device", "cpu,cpu")
    assert sorted(e["event"] for e in again) == ["failed"] * 3 + ["skipped"] * 5 + ["start", "warning"]
    rows = (tmp_path / "one" / "volumes.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == ["p0", "p4", "p5", "p6", "p7"]


def test_a_study_in_a_zip_goes_to_another_process(infer, bundle, tmp_path):
    """Its mask and its SEG are those of one device."""
    pytest.importorskip("highdicom", reason="the extra dicom is not installed (CI installs it)")
    from dicoms import save, study

    save(study(), tmp_path / "folder")
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
        for path in (tmp_path / "folder").iterdir():
            archive.write(path, path.name)
    given = (tmp_path / "study.zip", "-m", bundle, "-o")
    assert infer(*given, tmp_path / "one")[0] == 0
    status, events, err = infer(*given, tmp_path / "two", "--device", "cpu,cpu")
    assert (status, err, [event["event"] for event in events]) == (0, "", ["start", "done"])
    for path in (tmp_path / "one").iterdir():
        if path.suffix != ".json":
            assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def test_whoever_is_free_takes_the_next_scan(bundle, scans, tmp_path):
    """While one process stands still, the other does all that it has not in hand."""
    with workers(bundle) as opened:
        outcomes = opened.run(find_scans(scans, opened.spec), tmp_path / "out")
        done = [next(outcomes)]
        still = multiprocessing.active_children()[0]
        os.kill(still.pid, signal.SIGSTOP)
        # In hand are at most three, and what it has said before it stood still is told too.
        done += [next(outcomes) for _ in range(4)]
        os.kill(still.pid, signal.SIGCONT)
        done += outcomes
    assert sorted(outcome.scan for outcome in done) == [f"p{n}" for n in range(8)]
    assert all(isinstance(outcome, Done) for outcome in done)


def test_a_killed_process_loses_the_scan_that_it_computed(bundle, scans, tmp_path):
    """That one has failed, the others are done by who is left, and the next run does it too."""
    with workers(bundle) as opened:
        found = find_scans(scans, opened.spec)
        outcomes = opened.run(found, tmp_path / "out")
        told = [next(outcomes)]
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        told += outcomes
    (failed,) = [outcome for outcome in told if isinstance(outcome, Failed)]
    assert failed.error.code == "E_ENGINE_DIED"
    assert f"scan {failed.scan}: the process of device cpu ended by SIGKILL" in failed.error.received
    assert sorted(outcome.scan for outcome in told) == [f"p{n}" for n in range(8)]
    assert exit_status(told) == 4
    rows = (tmp_path / "out" / "volumes.csv").read_text().splitlines()
    written = {path.name.removesuffix("_seg.json") for path in (tmp_path / "out").glob("*_seg.json")}
    assert {row.split(",")[0] for row in rows[1:]} == written - {failed.scan}
    assert written >= {o.scan for o in told} - {failed.scan}
    with workers(bundle) as opened:
        again = list(opened.run(found, tmp_path / "out"))
    assert {type(outcome) for outcome in again} <= {Done, Skipped}
    assert exit_status(again) == 0


def test_when_every_process_is_killed_the_rest_has_failed(bundle, scans, tmp_path):
    """No scan without an outcome, and no run without an end."""
    with workers(bundle) as opened:
        outcomes = opened.run(find_scans(scans, opened.spec), tmp_path / "out")
        told = [next(outcomes)]
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)
        told += outcomes
    assert sorted(outcome.scan for outcome in told) == [f"p{n}" for n in range(8)]
    failed = [outcome.error for outcome in told if isinstance(outcome, Failed)]
    assert {error.code for error in failed} == {"E_ENGINE_DIED"}
    assert any("no device is left" in error.received for error in failed)
    assert {error.exit_status for error in failed} == {5}


@pytest.mark.parametrize(
    ("number", "everyone"), [(signal.SIGINT, True), (signal.SIGINT, False), (signal.SIGTERM, False)], ids=str
)
def test_an_interruption_ends_every_process(bundle, scans, tmp_path, number, everyone):
    """Status 130, no half file and no process left, whether a terminal tells all of them or one only."""
    for n in range(10, 30):
        write_scan(scans / f"p{n}", toy_volume(seed=n))
    out = tmp_path / "out"
    code = "from brainseg_runtime.cli import infer_main; infer_main()"
    command = [sys.executable, "-c", code, str(scans), "-m", str(bundle), "-o", str(out)]
    process = subprocess.Popen(
        [*command, "--device", "cpu,cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not any(out.glob("*.json")):
        assert process.poll() is None
        time.sleep(0.005)
    assert len(session(process.pid)) >= 3
    (os.killpg if everyone else os.kill)(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "interrupted\n")
    for path in out.glob("*_seg.json"):
        assert (out / json.loads(path.read_text())["mask"]["file"]).exists()
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
    until = time.monotonic() + 10  # multiprocessing's own helper notices by itself that it is not needed
    while session(process.pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert session(process.pid) == []


def session(leader: int) -> list[str]:
    """The processes of a session, but for those that have ended and wait to be counted."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, sid = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(sid) == leader and state != "Z":
            found.append(path.parent.name)
    return found


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("--device", "cpu,cuda:99", "--engine", "ort"), 5, "device cuda:99"),
        (("--device", "cpu,tpu"), 2, "'tpu' names no device"),
        (("--device", "cpu,cpu", "--timeout", "0"), 8, ""),
        (("--device", "cpu,cpu", "-o", "/proc/version"), 7, "E_OUTPUT"),
        (("--device", "cpu,cpu", "-m", "/nowhere"), 6, "E_NOT_BUNDLE"),
        (("--device", "cpu,cpu", "--max-memory", "500"), 8, ""),
    ],
    ids=str,
)
def test_what_stops_a_run_has_the_status_that_it_has_on_one_device(
    infer, bundle, scans, tmp_path, arguments, status, words
):
    """What a device lacks ends the run before a scan is touched; memory is that of all together."""
    given, events, err = infer(scans, "-m", bundle, "-o", tmp_path / "out", *arguments)
    assert given == status
    assert words in err
    assert [e for e in events if e["event"] == "done"] == []
    assert not list((tmp_path / "out").glob("*"))
    if status != 8:
        assert [event for event in events if event["event"] != "start"] == []


def test_a_dry_run_plans_on_the_first_device(infer, bundle, scans, tmp_path):
    """No process is started, nothing is written."""
    given = (scans, "-m", bundle, "-o", tmp_path / "out", "--dry-run", "--device")
    status, events, _ = infer(*given, "cpu,cpu")
    assert (status, {event["event"] for event in events[1:]}) == (0, {"planned"})
    assert events == infer(*given, "cpu")[1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "tpu", "cpu,", "cuda:x", "cuda:-1"])
def test_what_names_no_devices_is_refused(text):
    """A word that is no device."""
    with pytest.raises(UsageRefused, match="E_USAGE"):
        devices_of(text)


def test_devices_are_named_one_way():
    """``cuda`` is the first GPU, spaces do not count, any may be named again."""
    assert devices_of("cuda, cuda:1") == ("cuda:0", "cuda:1")
    assert devices_of("cpu,cpu,cuda:00,cuda") == ("cpu", "cpu", "cuda:0", "cuda:0")


def test_processes_share_threads_and_memory():
    """One takes what there is; of several each has its part, but for threads that were named."""
    assert share(["cpu"], None, None) == (None, None)
    assert share(["cpu"] * 2, 3, 1000) == (3, 500)
    threads, memory = share(["cpu"] * 1000, None, None)
    assert (threads, memory) == (1, machine_memory() // 1000)


def test_processes_on_one_gpu_share_its_memory(monkeypatch):
    """Each plans with its part of what is free when all have opened the model."""
    asked, free = [], iter([900, 600])
    monkeypatch.setattr(chapter, "find", asked.append)
    monkeypatch.setattr(chapter, "free_memory", lambda gpu: next(free))
    spec = toy_spec()
    segmenter = Segmenter(spec, toy_engine(spec), gpu_memory=1000)
    segmenter.share_gpu(3)
    assert segmenter.gpu_memory == 300
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # those of this process stay as they are
    ours, theirs = multiprocessing.Pipe()
    with closing(ours):
        ours.send("work")
        ours.send(None)  # no scan: the work is no work
        with closing(theirs):
            _serve(lambda device: segmenter, "cuda:0", 2, theirs)
        assert segmenter.gpu_memory == 300
    assert asked == [segmenter.engine.identity.device] * 2
    on_a_cpu = Segmenter(spec, toy_engine(spec))
    on_a_cpu.share_gpu(2)
    assert on_a_cpu.gpu_memory is None


def test_each_process_is_told_how_many_share_its_gpu(monkeypatch):
    """Those that are named like it, itself included."""

    class Context:
        Pipe = staticmethod(multiprocessing.Pipe)

        class Process:
            def __init__(self, target, args, name):
                told.append((name, args[2]))

            def start(self):
                pass

    told = []
    monkeypatch.setattr(devices, "get_context", lambda kind: Context)
    opened = Workers.__new__(Workers)
    opened._workers = []
    opened._start(None, ["cuda:0", "cuda:1", "cuda:0", "cpu"])
    for worker in opened._workers:
        worker.connection.close()
    assert told == [("cuda:0", 2), ("cuda:1", 1), ("cuda:0", 2), ("cpu", 1)]


def test_what_another_device_of_the_run_has_done_stands(scans, tmp_path):
    """Else a second run would do again what chance gives to another device."""
    spec = toy_spec()
    engine = toy_engine(spec)
    other = FunctionEngine(engine.infer, replace(engine.identity, device="another"))
    found = find_scans(scans, spec)
    list(run(Segmenter(spec, other), found, tmp_path))
    way = {"folder": tmp_path, "label_scheme": "brats2023", "overwrite": False, "attachments": ()}
    engines = [vars(other.identity)]
    stands = segment_each(Segmenter(spec, engine), found.scans, **way, engines=engines)
    assert {type(outcome) for outcome in stands} == {Skipped}
    assert {type(outcome) for outcome in segment_each(Segmenter(spec, engine), found.scans, **way)} == {Done}


def test_an_error_goes_whole_from_process_to_process():
    """Its code, what was received and what to do."""
    error = OutputUnwritable("E_OUTPUT", "the folder is full.", "Make room.")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), vars(copy), str(copy)) == (type(error), vars(error), str(error))
