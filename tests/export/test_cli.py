"""What a user types, and the status it ends with."""

import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
from brainseg_export import cli

from .networks import write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "toy", scans=1)


@pytest.fixture
def brainseg_export(typed):
    """Run ``brainseg-export`` in this process: (status, stdout, stderr)."""
    return partial(typed, cli.main, "brainseg-export")


def test_bundle_verify_inspect(brainseg_export, run, tmp_path, monkeypatch):
    """The three verbs in a row; a bundle is called as its run; progress goes to stderr."""
    monkeypatch.chdir(tmp_path)
    status, out, err = brainseg_export("bundle", run)
    assert (status, out.split()[0]) == (0, "bundles/toy"), err
    assert "walker: " in err
    status, out, err = brainseg_export("verify", "bundles/toy")
    assert (status, err) == (0, "")
    assert {line.split()[0] for line in out.splitlines()} == {"ok"}
    for words in (
        "files",
        "parity model.onnx openvino fp32",
        "self-test openvino fp32",
        "self-test ort fp16",
    ):
        assert words in out
    status, out, err = brainseg_export("inspect", "bundles/toy")
    assert (status, err) == (0, "")
    for words in ("(N, 4, i, j, k) float32", "Conv ", "opset 18", "t1c (t1c, t1ce)", "weights", "passed"):
        assert words in out

    path = tmp_path / "bundles" / "toy" / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    status, out, err = brainseg_export("verify", "bundles/toy")
    assert (status, out) == (6, "")
    assert err.startswith("E_BUNDLE_DAMAGED")


def test_keygen_sign_verify(brainseg_export, tmp_path):
    """A pair of keys, a signature, and what verify says with the right key, the wrong one and none."""
    from brainseg_runtime.bundle import Bundle
    from toys import toy_bundle, toy_certificate, toy_graph, toy_spec

    pytest.importorskip("cryptography", reason="the extra trust is not installed (CI installs it)")
    graph = toy_graph(toy_spec())
    both = [toy_certificate(graph, precision).parities for precision in ("fp32", "fp16")]
    certificate = toy_certificate(graph)
    certificate = replace(
        certificate,
        scans=(replace(certificate.scans[0], regions_ml={"WT": 1.0, "TC": 1.0, "ET": 1.0}),),
        parities=(*both[0], *both[1]),
    )
    files = {"certificate.json": certificate.to_json().encode()}
    bundle = toy_bundle(tmp_path / "toy", **files).folder
    keys = [tmp_path / "a.pem", tmp_path / "b.pem"]
    for key in keys:
        status, out, err = brainseg_export("keygen", key)
        assert (status, err) == (0, "")
        assert "BEGIN PRIVATE KEY" not in out
        assert key.with_suffix(".pub.pem").is_file()
    assert brainseg_export("keygen", keys[0])[0] == 7
    trust = ("--require-signature", keys[0].with_suffix(".pub.pem"))
    status, _, err = brainseg_export("verify", bundle, *trust)
    assert (status, "E_SIGNATURE" in err) == (6, True)
    assert brainseg_export("sign", bundle, "--key", keys[1])[0] == 0
    assert brainseg_export("verify", bundle, *trust)[0] == 6
    assert brainseg_export("sign", bundle, "--key", keys[0])[0] == 0
    status, out, err = brainseg_export("verify", bundle, *trust)
    assert (status, err) == (0, ""), out
    assert "signature" in out
    assert brainseg_export("verify", bundle)[0] == 0
    assert brainseg_export("sign", bundle, "--key", tmp_path / "nowhere.pem")[0] == 2
    assert Bundle.open(bundle).sha256


def test_failed_checks_are_shown_and_end_with_status_6(brainseg_export, tmp_path):
    """The table says what failed, the last line why that matters."""
    from toys import toy_bundle

    status, out, err = brainseg_export("verify", toy_bundle(tmp_path / "toy").folder)
    assert status == 6
    assert "E_PARITY" in out
    assert err.startswith("E_PARITY")


@pytest.mark.parametrize(
    ("arguments", "status", "code"),
    [
        (("bundle", "nowhere"), 2, "E_USAGE"),
        (("bundle", "{run}/model.keras", "--spec", "{run}/spec.json"), 2, "E_USAGE"),
        (("bundle", "{run}", "--scans", "nowhere"), 2, "E_INPUT_MISSING"),
        (("bundle", "{run}", "--via", "hand"), 2, "hand"),
        (("bundle", "{run}", "--spec", "{run}/metrics.json"), 6, "E_BUNDLE_FORMAT"),
        (("verify", "{run}"), 6, "E_NOT_BUNDLE"),
        (("inspect", "{run}"), 6, "E_NOT_BUNDLE"),
    ],
)
def test_refusals_have_their_status(brainseg_export, run, tmp_path, monkeypatch, arguments, status, code):
    """As in the table of the design, with a code on stderr and nothing on stdout."""
    monkeypatch.chdir(tmp_path)
    found, out, err = brainseg_export(*(argument.format(run=run) for argument in arguments))
    assert (found, out) == (status, "")
    assert code in err


def test_plans_are_built_where_a_gpu_is_and_else_one_line_says_why_not(brainseg_export, tmp_path):
    """Status 5 without a GPU or without TensorRT, whose absence ``make export`` lets pass."""
    from brainseg_runtime.gpu import NoDriver, gpus
    from toys import toy_bundle

    try:
        gpus()
    except NoDriver:
        status, out, err = brainseg_export("engine", toy_bundle(tmp_path / "toy").folder)
        assert (status, out, err.count("\n")) == (5, "", 1)
        assert err.startswith(("E_ENGINE_DEVICE", "E_ENGINE_MISSING"))
        assert "nstall" in err
    else:
        pytest.skip("this machine has a GPU")


def test_help_imports_no_keras():
    """``--help`` answers at once."""
    script = (
        "import sys; from brainseg_export import cli; "
        "heavy = {'keras', 'tensorflow', 'onnx', 'onnxruntime', 'tf2onnx'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
