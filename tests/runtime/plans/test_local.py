"""The plan of a graph for a GPU: TensorRT-RTX builds it for real, of the GPU it takes a description."""

import json
import sys
from dataclasses import replace

import pytest
from brainseg_runtime.errors import EngineUnavailable
from brainseg_runtime.gpu import Gpu, NoDriver, gpus
from brainseg_runtime.plans import flavour as flavours
from brainseg_runtime.plans.building import Built
from brainseg_runtime.plans.cache import PlanCache
from brainseg_runtime.plans.flavour import FLAVOURS
from brainseg_runtime.plans.local import plan_for
from brainseg_runtime.plans.request import Request, largest_batch, profiles_of
from toys import toy_graph, toy_spec

pytest.importorskip("tensorrt_rtx", reason="the extra rtx is not installed (CI installs it)")

SPEC = toy_spec()
GRAPH = toy_graph(SPEC)
ADA = Gpu(0, "NVIDIA RTX 4000 Ada", (8, 9), 20 * 2**30, "580.65.06")
HOPPER = Gpu(0, "NVIDIA H200", (9, 0), 141 * 2**30, "580.65.06")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The cache that the commands find."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return PlanCache.open()


def test_a_plan_is_built_once_and_then_found(cache):
    """The second time the builder is not even asked."""
    said = []
    first = plan_for(GRAPH, SPEC, "fp32", ADA, progress=lambda *told: said.append(told))
    assert said
    assert (first.flavour.name, first.request.gpu) == ("rtx", ADA.name)
    said.clear()
    second = plan_for(GRAPH, SPEC, "fp32", ADA, progress=lambda *told: said.append(told))
    assert (second.plan == first.plan, said) == (True, [])


def test_a_plan_in_another_precision_is_never_kept(cache):
    """An FP32 graph that is asked for as FP16 is refused, and the cache stays empty."""
    with pytest.raises(EngineUnavailable, match=r"E_PLAN.*not in fp16"):
        plan_for(GRAPH, SPEC, "fp16", ADA)
    assert list(cache.entries()) == []


def test_a_gpu_gets_the_tensorrt_that_is_made_for_it(monkeypatch):
    """Workstation cards TensorRT-RTX, data-centre cards TensorRT, and what is missing is named."""
    first = {cap: flavours.fitting(cap)[0].name for cap in [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (12, 0)]}
    assert first == {
        (7, 5): "rtx",
        (8, 0): "tensorrt",
        (8, 6): "rtx",
        (8, 9): "rtx",
        (9, 0): "tensorrt",
        (12, 0): "rtx",
    }
    assert FLAVOURS["rtx"] in flavours.fitting((8, 0))
    for capability in ((9, 0), (10, 0)):
        assert FLAVOURS["rtx"] not in flavours.fitting(capability)
    assert flavours.choose(ADA).name == "rtx"
    for name in ("tensorrt", "tensorrt_lean_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        EngineUnavailable, match=r"E_ENGINE_MISSING.*H200.*9.0.*brainseg-runtime\[trt\]"
    ) as told:
        flavours.choose(HOPPER)
    assert told.value.exit_status == 5
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(EngineUnavailable, match=r"E_ENGINE_MISSING.*brainseg-runtime\[rtx\]"):
        flavours.choose(ADA)


def test_the_lean_library_never_builds(cache, monkeypatch):
    """Without TensorRT itself there is no plan for it, and the refusal says what to type, and where."""
    lean = FLAVOURS["lean"]
    monkeypatch.setattr(flavours, "installed", lambda flavour: flavour is lean)
    monkeypatch.setattr(flavours, "load", lambda _: sys.modules["tensorrt_rtx"])
    with pytest.raises(EngineUnavailable, match=r"E_PLAN.*only runs plans.*plans build BUNDLE --lean"):
        plan_for(GRAPH, SPEC, "fp32", HOPPER, flavour=lean)


def test_what_builds_for_the_lean_library_is_what_is_said_to_be_missing(cache, monkeypatch):
    """``plans build --lean`` takes TensorRT itself, neither the lean library nor TensorRT-RTX."""
    for name in ("tensorrt", "tensorrt_lean_libs"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EngineUnavailable, match=r"E_ENGINE_MISSING.*brainseg-runtime\[trt\]"):
        plan_for(GRAPH, SPEC, "fp32", HOPPER, flavour=FLAVOURS["lean"])


def test_a_plan_for_the_lean_library_is_bound_to_the_major_version_alone():
    """Its sixteenth minor version runs what its thirteenth did."""
    old, new = (Request.of(GRAPH, SPEC, "fp16", HOPPER, FLAVOURS["lean"], v) for v in ("11.1.0", "11.4.0"))
    next_major = Request.of(GRAPH, SPEC, "fp16", HOPPER, FLAVOURS["lean"], "12.0.0")
    full = [Request.of(GRAPH, SPEC, "fp16", HOPPER, FLAVOURS["tensorrt"], v) for v in ("11.1.0", "11.4.0")]
    assert old.key == new.key != next_major.key
    assert full[0].key != full[1].key


def kept(cache, flavour, version, gpu=ADA):
    """The key of a plan that was built by another environment."""
    request = Request.of(GRAPH, SPEC, "fp16", gpu, FLAVOURS[flavour], version)
    cache.put(request, Built(b"a plan", {}))
    return request.key


def test_plans_are_listed_verified_and_pruned(cache, brainseg):
    """What was changed goes; a plan of a TensorRT that this environment lacks stays, and is told apart."""
    assert brainseg("plans", "list") == (0, f"no plans in {cache.folder}\n", "")
    good = plan_for(GRAPH, SPEC, "fp32", ADA).request.key
    old = kept(cache, "rtx", "0.9")
    status, out, _ = brainseg("plans", "list", "--json")
    rows = {row["key"]: row for row in map(json.loads, out.splitlines())}
    assert (status, set(rows)) == (0, {good, old})
    assert "not TensorRT-RTX 0.9" in rows[old]["lacking"]
    assert rows[good]["lacking"] == ""
    assert rows[good]["built_for"]["gpu"] == ADA.name
    assert brainseg("plans", "verify")[0] == 0
    assert good[:12] in brainseg("plans", "list")[1]
    (cache.folder / f"{good}.plan").write_bytes(b"changed")
    status, out, _ = brainseg("plans", "verify")
    assert status == 6
    assert "changed or cut short" in out
    status, out, _ = brainseg("plans", "prune")
    assert status == 0
    assert good[:12] in out
    assert good not in {entry.key for entry in cache.entries()}


def test_only_another_gpu_another_driver_or_a_broken_seal_makes_a_plan_prunable(cache, brainseg, monkeypatch):
    """Not what this environment lacks: another one on this machine may have it, and built it here."""
    monkeypatch.setattr("brainseg_runtime.plans.local.gpus", lambda: (HOPPER,))
    here = {kept(cache, name, "10.13", HOPPER) for name in ("tensorrt", "lean", "rtx")}
    gone = {
        kept(cache, "tensorrt", "10.13", ADA),
        kept(cache, "tensorrt", "10.13", replace(HOPPER, driver="570.1")),
    }
    damaged = kept(cache, "tensorrt", "9", HOPPER)
    (cache.folder / f"{damaged}.json").write_text("{}")
    out = brainseg("plans", "list")[1]
    assert out.count("is not installed in this environment") == 2
    assert out.count("there is no") == 2
    assert brainseg("plans", "prune")[0] == 0
    assert {entry.key for entry in cache.entries()} == here
    assert here.isdisjoint(gone)


def test_a_tensorrt_that_does_not_load_ends_no_list(cache, brainseg, monkeypatch, tmp_path):
    """It is said of its own plans; the others are told as ever."""
    broken = tmp_path / "broken" / "tensorrt"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise OSError('libnvinfer.so.10 is cut short')")
    monkeypatch.syspath_prepend(broken.parent)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    bad, good = kept(cache, "tensorrt", "10.13"), plan_for(GRAPH, SPEC, "fp32", ADA).request.key
    status, out, _ = brainseg("plans", "list", "--json")
    told = {row["key"]: row["lacking"] for row in map(json.loads, out.splitlines())}
    assert status == 0
    assert "cut short" in told[bad]
    assert told[good] == ""
    assert brainseg("plans", "prune")[0] == 0


def test_a_sidecar_that_anybody_wrote_is_listed_and_refused(cache, brainseg):
    """Whatever fields it has."""
    key = kept(cache, "rtx", "1")
    (cache.folder / f"{key}.json").write_text('{"seal": "", "built_for": {"a": 1}, "size": 1, "built": ""}')
    status, out, _ = brainseg("plans", "list")
    assert (status, "its seal does not fit" in out) == (0, True)
    status, out, _ = brainseg("plans", "verify")
    assert (status, "its seal does not fit" in out) == (6, True)
    assert brainseg("plans", "prune")[0] == 0
    assert list(cache.entries()) == []


def test_pruning_leaves_what_may_still_run(cache, brainseg):
    """Without a driver nobody can say that a GPU is gone; ``--all`` removes everything."""
    key = plan_for(GRAPH, SPEC, "fp32", ADA).request.key
    try:
        here = any((gpu.name, gpu.driver) == (ADA.name, ADA.driver) for gpu in gpus())
        kept = [key] if here else []
    except NoDriver:
        kept = [key]
    brainseg("plans", "prune")
    assert [entry.key for entry in cache.entries()] == kept
    brainseg("plans", "prune", "--all")
    assert list(cache.entries()) == []


def test_a_batch_is_cut_to_what_a_plan_takes():
    """Heads go one at a time, tiles four at a time, and what no profile holds not at all."""
    profiles = profiles_of(toy_spec(scheme="whole"))
    assert largest_batch(profiles, (3, 4, 160, 192, 160)) == 1
    assert largest_batch(profiles, (3, 4, 16, 16, 16)) == 3
    assert largest_batch(profiles, (9, 4, 16, 16, 16)) == 4
    assert largest_batch(profiles, (1, 4, 400, 16, 16)) == 0
