"""The known answer on every engine of this machine, and what the doctor says of it."""

import json
import sys

import numpy as np
from brainseg_runtime import doctor
from brainseg_runtime.bundle import Golden
from brainseg_runtime.selftest import everywhere
from toys import toy_bundle


def test_every_engine_and_precision_is_tried(tmp_path, brainseg):
    """A row each: certified or not, and how far from the known answer."""
    folder = toy_bundle(tmp_path / "toy").folder
    status, out, _ = brainseg("selftest", folder, "--json")
    rows = {(row["engine"], row["precision"]): row for row in map(json.loads, out.splitlines())}
    assert status == 0
    assert {("openvino", "fp32"), ("openvino", "bf16"), ("ort", "fp32"), ("ort", "fp16")} <= set(rows)
    assert rows["ort", "fp32"]["certified"]
    assert not rows["ort", "fp16"]["certified"]
    assert rows["openvino", "fp32"]["code"] is None
    assert "certified" in brainseg("selftest", folder)[1]


def test_a_certified_engine_that_misses_the_answer_ends_with_6(tmp_path, brainseg):
    """Uncertified ones may miss it: they do not run anyway."""
    golden = Golden(np.ones((8, 8, 8, 4), np.float32), np.ones((8, 8, 8, 3), np.float32))
    folder = toy_bundle(tmp_path / "toy", **{"selftest.npz": golden.to_npz()}).folder
    status, out, _ = brainseg("selftest", folder)
    assert status == 6
    assert "E_SELFTEST" in out


def test_an_engine_that_is_not_installed_is_not_broken(tmp_path, monkeypatch):
    """It is named, with the line that installs it."""
    monkeypatch.setitem(sys.modules, "openvino", None)
    bundle = toy_bundle(tmp_path / "toy")
    verdicts = {(v.engine, v.precision): v for v in everywhere(bundle)}
    absent = verdicts["openvino", "fp32"]
    assert (absent.code, absent.broken) == ("E_ENGINE_MISSING", False)
    assert "pip install" in absent.detail


def test_the_doctor_names_what_is_missing_and_how_to_get_it(monkeypatch, brainseg):
    """0 while an engine runs; 5 without any."""
    assert brainseg("doctor")[0] == 0
    monkeypatch.setitem(sys.modules, "openvino", None)
    status, out, _ = brainseg("doctor")
    assert status == 0
    assert 'pip install "brainseg-runtime[openvino]"' in out
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert brainseg("doctor")[0] == 5


def test_the_doctor_names_the_broken_pair(monkeypatch, brainseg):
    """Both ONNX Runtime packages at once overwrite each other, and no import tells."""
    monkeypatch.setattr(doctor, "version", lambda package: "1.0")
    status, out, _ = brainseg("doctor")
    assert status == 5
    assert "onnxruntime + onnxruntime-gpu" in out
    assert "pip uninstall" in out


def test_the_doctor_finds_an_engine_that_does_not_load(monkeypatch, brainseg):
    """Installed is not running: the package is really imported."""

    def broken(name):
        raise ImportError(f"{name}: libtbb.so.12 is missing")

    monkeypatch.setattr(doctor, "import_module", broken)
    status, out, _ = brainseg("doctor")
    assert status == 5
    assert "libtbb" in out
