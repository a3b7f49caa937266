"""A plan is code: what this user did not build here, for this very request, is never read back."""

import errno
import fcntl
import json
import subprocess
import sys
import threading
import time
from dataclasses import fields, replace

import pytest
from brainseg_runtime.errors import EngineUnavailable, OutputUnwritable
from brainseg_runtime.plans.building import Built
from brainseg_runtime.plans.cache import PlanCache, default_folder
from brainseg_runtime.plans.request import Profile, Request

SHAPES = (1, 4, 8, 8, 8), (1, 4, 64, 64, 64), (2, 4, 128, 128, 128)
REQUEST = Request(
    graph_sha256="ab" * 32,
    precision="fp16",
    flavour="rtx",
    version="1.7.1.116",
    gpu="NVIDIA RTX 4000 Ada",
    capability=(8, 9),
    driver="580.65.06",
    input_name="image",
    output_name="logits",
    profiles=(Profile(*SHAPES),),
)
BUILT = Built(b"machine code" * 100, {"stem": "Half"})
OTHERS = {
    "graph_sha256": "cd" * 32,
    "precision": "fp32",
    "flavour": "tensorrt",
    "version": "1.7.1.117",
    "gpu": "NVIDIA RTX 4500 Ada",
    "capability": (12, 0),
    "driver": "580.82.07",
    "input_name": "x",
    "output_name": "y",
    "profiles": (Profile(*SHAPES), Profile(*SHAPES)),
    "recipe": 0,
}


@pytest.fixture
def cache(tmp_path):
    return PlanCache.open(tmp_path / "plans")


def paths(cache):
    return cache.folder / f"{REQUEST.key}.plan", cache.folder / f"{REQUEST.key}.json"


def never():
    raise AssertionError("a sound plan was built again")


def test_a_plan_that_was_kept_is_found_again(cache):
    """Once built, never again; a second process finds it too."""
    assert cache.get(REQUEST) is None
    assert cache.obtain(REQUEST, lambda: BUILT) == BUILT.plan
    assert PlanCache.open(cache.folder).obtain(REQUEST, never) == BUILT.plan
    (entry,) = cache.entries()
    assert (entry.key, entry.problem, entry.size) == (REQUEST.key, "", len(BUILT.plan))
    assert entry.built_for["gpu"] == REQUEST.gpu


@pytest.mark.parametrize("name", [field.name for field in fields(Request)])
def test_whatever_a_plan_depends_on_is_part_of_its_key(cache, name):
    """Another graph, TensorRT, GPU, driver or option is another plan."""
    other = replace(REQUEST, **{name: OTHERS[name]})
    assert other.key != REQUEST.key
    cache.put(REQUEST, BUILT)
    assert cache.get(other) is None


def cut(cache):
    paths(cache)[0].write_bytes(BUILT.plan[:-1])


def replaced(cache):
    paths(cache)[0].write_bytes(b"something else")


def replaced_with_its_hash(cache):
    """As somebody would who knows the format, but not the secret."""
    import hashlib

    plan, sidecar = paths(cache)
    plan.write_bytes(b"something else")
    told = json.loads(sidecar.read_text())
    told.update(sha256=hashlib.sha256(b"something else").hexdigest(), size=14)
    sidecar.write_text(json.dumps(told))


def relabelled(cache):
    sidecar = paths(cache)[1]
    told = json.loads(sidecar.read_text())
    told["built_for"]["driver"] = "1.0"
    sidecar.write_text(json.dumps(told))


def moved_from_another_key(cache):
    other = replace(REQUEST, gpu="another")
    cache.put(other, Built(b"for another GPU", {}))
    for end, path in zip(("plan", "json"), paths(cache), strict=True):
        (cache.folder / f"{other.key}.{end}").replace(path)


def carried_in_from_another_cache(cache):
    foreign = PlanCache.open(cache.folder.parent / "elsewhere")
    foreign.put(REQUEST, Built(b"carried in", {}))
    for end, path in zip(("plan", "json"), paths(cache), strict=True):
        (foreign.folder / f"{REQUEST.key}.{end}").replace(path)


def linked(cache):
    plan = paths(cache)[0]
    (cache.folder.parent / "target").write_bytes(BUILT.plan)
    plan.unlink()
    plan.symlink_to(cache.folder.parent / "target")


def writable_by_others(cache):
    paths(cache)[0].chmod(0o666)


def without_sidecar(cache):
    paths(cache)[1].unlink()


def without_plan(cache):
    paths(cache)[0].unlink()


def damaged_sidecar(cache):
    paths(cache)[1].write_text("{")


def sidecar_of_another_kind(cache):
    paths(cache)[1].write_text("[1]")


def sidecar_with_other_fields(cache):
    paths(cache)[1].write_text(json.dumps({"seal": "", "built_for": {"gpu": "?"}, "size": 1, "built": ""}))


def sidecar_without_end(cache):
    paths(cache)[1].write_text("[" * 100_000)


def forgotten_secret(cache):
    (cache.folder / "secret").write_bytes(b"x" * 32)


def readable_secret_cut_short(cache):
    (cache.folder / "secret").write_bytes(b"x")


@pytest.mark.parametrize(
    "tamper",
    [
        cut,
        replaced,
        replaced_with_its_hash,
        relabelled,
        moved_from_another_key,
        carried_in_from_another_cache,
        linked,
        writable_by_others,
        without_sidecar,
        without_plan,
        damaged_sidecar,
        sidecar_of_another_kind,
        sidecar_with_other_fields,
        sidecar_without_end,
        forgotten_secret,
        readable_secret_cut_short,
    ],
    ids=lambda tamper: tamper.__name__,
)
def test_a_plan_that_was_tampered_with_is_built_anew(cache, tamper):
    """Cut short, replaced, relabelled, moved, carried in: no byte of it is handed to TensorRT."""
    cache.put(REQUEST, BUILT)
    tamper(cache)
    assert cache.get(REQUEST) is None
    if tamper is not moved_from_another_key:  # which is sound in itself, and only not what was asked for
        assert all(entry.problem for entry in cache.entries())
    fresh = Built(b"fresh", {})
    assert cache.obtain(REQUEST, lambda: fresh) == b"fresh"
    assert cache.get(REQUEST) == b"fresh"


def test_a_folder_that_others_can_write_is_refused(tmp_path):
    """Whoever can write plans into it could run code as this user."""
    folder = tmp_path / "plans"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(EngineUnavailable, match=r"E_PLAN_CACHE.*chmod 700") as told:
        PlanCache.open(folder)
    assert told.value.exit_status == 5


def test_nobody_else_can_read_the_secret_or_enter_the_folder(cache):
    """The secret makes seals; the folder is closed."""
    cache.put(REQUEST, BUILT)
    assert (cache.folder / "secret").stat().st_mode & 0o777 == 0o600
    assert cache.folder.stat().st_mode & 0o777 == 0o700


def test_a_build_that_fails_leaves_nothing(cache):
    """The next one starts from nothing."""

    def fail():
        raise EngineUnavailable("E_PLAN", "no.", "Stop.")

    with pytest.raises(EngineUnavailable):
        cache.obtain(REQUEST, fail)
    assert list(cache.entries()) == []
    assert cache.obtain(REQUEST, lambda: BUILT) == BUILT.plan


def test_a_discarded_plan_is_gone(cache):
    """No file of it is left."""
    cache.put(REQUEST, BUILT)
    cache.discard(REQUEST.key)
    assert [path.name for path in cache.folder.iterdir() if REQUEST.key in path.name] == []


BUILDER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_cache import REQUEST
from brainseg_runtime.plans.building import Built
from brainseg_runtime.plans.cache import PlanCache
folder = Path(sys.argv[1])

def make():
    with (folder.parent / "builds").open("a") as log:
        log.write("built\\n")
    time.sleep(0.5)
    return Built(b"by one process", {})

print(PlanCache.open(folder).obtain(REQUEST, make).decode())
"""


def test_of_several_processes_one_builds_and_all_get_the_plan(cache, request):
    """They wait for it instead of building the same thing side by side."""
    command = [sys.executable, "-c", BUILDER, str(cache.folder), str(request.path.parent)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[0] for process in processes] == ["by one process\n"] * 3
    assert (cache.folder.parent / "builds").read_text() == "built\n"


def test_a_process_that_dies_while_it_builds_blocks_nobody(cache, request):
    """Its lock dies with it, and what it left is not taken for a plan."""
    code = BUILDER.replace("time.sleep(0.5)", "print('building', flush=True); time.sleep(60)")
    command = [sys.executable, "-c", code, str(cache.folder), str(request.path.parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "building\n"
        process.kill()
    assert cache.obtain(REQUEST, lambda: BUILT) == BUILT.plan


def test_a_lock_that_was_removed_while_another_waited_for_it_is_no_lock(cache):
    """Two builders never hold two files under one name."""
    path, entered, leave = cache.folder / "x.lock", threading.Event(), threading.Event()

    def second():
        with cache._locked("x"):
            entered.set()
            leave.wait()

    with cache._locked("x"):
        waiting = threading.Thread(target=second)
        waiting.start()
        time.sleep(0.2)  # until it waits; if it does not yet, there is nothing to show
        path.unlink()
    try:
        assert entered.wait(timeout=10)
        with path.open("a") as third, pytest.raises(BlockingIOError):
            fcntl.flock(third, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        leave.set()
        waiting.join()


def test_a_disk_that_cannot_lock_is_refused(cache, monkeypatch):
    """As some network file systems answer."""

    def unsupported(descriptor, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.raises(OutputUnwritable, match=r"E_OUTPUT.*No locks available.*XDG_CACHE_HOME"):
        cache.obtain(REQUEST, lambda: BUILT)


def test_the_cache_lies_where_the_system_keeps_caches(monkeypatch, tmp_path):
    """In the user's cache folder, wherever the system says that this is."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "brainseg" / "plans"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "brainseg" / "plans"
