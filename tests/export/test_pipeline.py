"""From a model to a bundle that has proved itself, and nothing on disk where it has not."""

import hashlib
import json
import sys

import keras
import numpy as np
import onnx
import pytest
from brainseg_export import pipeline, verify
from brainseg_export.graph import ALLOWED_OPS, operators
from brainseg_export.pipeline import Licence, Source, export
from brainseg_runtime import certificate
from brainseg_runtime.bundle import Bundle
from brainseg_runtime.errors import BundleInvalid, ScanRefused, UsageRefused
from brainseg_runtime.scans import find_scans, read
from brainseg_runtime.segmenter import load
from brainseg_runtime.spec import Label, Modality, Region
from keras import layers
from onnx import numpy_helper
from toys import toy_spec, write_scan

from .networks import blobs, image, joined, randomise, settle, unet, write_run


def quiet(line: str) -> None:
    """Progress that nobody reads."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "toy")


@pytest.fixture(scope="module")
def bundle(run, tmp_path_factory):
    return export(Source.of(run), tmp_path_factory.mktemp("bundles") / "toy", quiet)


def test_a_run_becomes_a_bundle_that_segments(bundle, run):
    """The runtime loads it, its self-test passes, and every region is found on the run's scan."""
    assert Bundle.open(bundle.folder).sha256 == bundle.sha256
    scan = find_scans(run / "parity", bundle.spec).scans[0]
    for precision in ("fp32", "fp16"):
        with load(bundle.folder, "ort", precision=precision) as segmenter:
            assert min(segmenter.segment(read(scan)).volumes_ml().values()) > 0


def test_a_bundle_holds_what_the_design_says(bundle):
    """Graphs, certificate, self-test, card and licence, all in the manifest."""
    assert set(bundle.manifest["files"]) == set(FILES)
    assert set(operators(onnx.load_from_string(bundle.read("model.onnx")))) <= ALLOWED_OPS


def test_the_certificate_speaks_of_every_graph_on_every_engine(bundle):
    """The witness, FP32 and FP16, each within its bounds; FP16 says what it does not prove."""
    proof = bundle.certificate
    found = {(p.graph, p.identity.engine, p.identity.precision): p for p in proof.parities}
    graphs = [("model.onnx", "fp32"), ("model.fp16.onnx", "fp16")]
    expected = {(graph, engine, p) for engine in ("ort", "openvino") for graph, p in graphs}
    assert set(found) - {("model.onnx", "openvino", "bf16")} == expected | {("tf2onnx", "ort", "fp32")}
    assert all(p.passed for p in proof.parities if p.identity.precision != "bf16")
    for engine in ("ort", "openvino"):
        assert found["model.onnx", engine, "fp32"].logits < 1e-4
        assert found["model.fp16.onnx", engine, "fp16"].logits > 1e-6
        assert "nothing about FP16 arithmetic" in found["model.fp16.onnx", engine, "fp16"].proves
    assert {scan.scan for scan in proof.scans} == {"p0", "p1"}
    assert all(min(scan.regions_ml.values()) > 0 for scan in proof.scans)


def test_bfloat16_runs_only_where_the_certificate_lets_it(bundle, monkeypatch):
    """It may fail without failing the bundle; then it is refused, 6."""
    entries = [p for p in bundle.certificate.parities if p.identity.precision == "bf16"]
    if not entries:
        pytest.skip("this CPU does not compute in bfloat16")
    assert entries[0].logits > 1e-5
    if entries[0].passed:
        load(bundle.folder, "openvino", precision="bf16").close()
    strict = {**certificate.BOUNDS, "bf16": certificate.Bounds(1e-9, 1.0)}
    monkeypatch.setattr(certificate, "BOUNDS", strict)
    with pytest.raises(BundleInvalid, match=r"E_UNCERTIFIED.*failed parity"):
        load(bundle.folder, "openvino", precision="bf16")


def test_without_openvino_the_certificate_is_silent_about_it(run, tmp_path, monkeypatch):
    """Then auto takes ONNX Runtime and says why, and a demand for OpenVINO is refused."""
    with monkeypatch.context() as absent:
        absent.setitem(sys.modules, "openvino", None)
        lines = []
        made = export(Source.of(run), tmp_path / "bundle", lines.append)
    assert any("openvino is not installed" in line for line in lines)
    assert {p.identity.engine for p in made.certificate.parities} == {"ort"}
    with load(made.folder) as segmenter:
        assert segmenter.engine.identity.engine == "ort"
        assert "not covered" in segmenter.why
    with pytest.raises(BundleInvalid, match="E_UNCERTIFIED"):
        load(made.folder, "openvino")


def test_provenance_says_where_the_bundle_comes_from(bundle, run):
    """The model's own hash, the versions, the sizes."""
    origin = bundle.manifest["provenance"]
    assert origin["model_sha256"] == hashlib.sha256((run / "model.keras").read_bytes()).hexdigest()
    assert origin["via"] == "walker"
    assert origin["versions"]["keras"] == keras.__version__
    assert origin["nodes"]["model.onnx"] == 13


def test_the_golden_tile_holds_every_region(bundle):
    """A self-test on background would pass with almost any graph."""
    golden = bundle.golden()
    assert golden.tile.shape == (16, 16, 16, 4)
    for r in range(3):
        assert 0.02 < (golden.logits[..., r] > 0).mean() < 0.98


def test_the_card_can_be_read_alone(bundle):
    """Inputs with their aliases, regions, training, parity, limits, and no medical device."""
    card = bundle.read("MODEL_CARD.md").decode()
    for words in (
        "not a medical device",
        "t1c (t1c, t1ce)",
        "TC = NCR + ET",
        'network = "unet"',
        '"WT": 0.5',
        '"scans": 1',
        "model.fp16.onnx",
        "Limits",
        "Licence of the weights: not stated",
    ):
        assert words.lower() in card.lower()
    assert "p7" not in card


FILES = ("model.onnx", "model.fp16.onnx", "certificate.json", "selftest.npz", "MODEL_CARD.md", "LICENSE")


@pytest.mark.parametrize("name", [*FILES, "manifest.json", "manifest.sha256"])
def test_a_flipped_byte_in_any_file_is_found(bundle, tmp_path, name):
    """Status 6, whichever file it is."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in bundle.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(BundleInvalid) as caught:
        verify.require(verify.checks(folder))
    assert caught.value.exit_status == 6


def test_an_altered_weight_fails_parity_and_nothing_is_written(run, tmp_path, monkeypatch):
    """Were the walker wrong by a little, the export would say by how much, and stop."""

    def wrong(logits, spec):
        proto = right(logits, spec)
        weight = next(w for w in proto.graph.initializer if w.name == "head/kernel")
        weight.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.02), weight.name)
        )
        return proto

    right = pipeline.walk
    monkeypatch.setattr(pipeline, "walk", wrong)
    with pytest.raises(BundleInvalid, match=r"model\.onnx on ort \(fp32\).*Dice WT") as caught:
        export(Source.of(run), tmp_path / "bundle", quiet)
    assert (caught.value.code, caught.value.exit_status) == ("E_PARITY", 6)
    assert list(tmp_path.iterdir()) == []


def test_a_scan_without_a_region_proves_nothing(run, tmp_path):
    """Empty masks agree with anything: the region is named and the export stops."""
    spec = toy_spec()
    model = settle(unet(spec), spec)
    kernel, bias = model.get_layer("head").get_weights()
    model.get_layer("head").set_weights([kernel, bias - [0, 0, 1e3]])
    model.save(tmp_path / "model.keras")
    source = Source.of(tmp_path / "model.keras", run / "spec.json", run / "parity")
    with pytest.raises(BundleInvalid, match="p0: region ET is empty; p1") as caught:
        export(source, tmp_path / "bundle", quiet)
    assert caught.value.code == "E_PARITY"


def test_a_saturated_model_proves_nothing(run, tmp_path):
    """Where no voxel is near the decision, rounding has nothing to turn."""
    spec = toy_spec()
    model = settle(unet(spec), spec)
    model.get_layer("head").set_weights([w * 1e4 for w in model.get_layer("head").get_weights()])
    model.save(tmp_path / "model.keras")
    source = Source.of(tmp_path / "model.keras", run / "spec.json", run / "parity")
    with pytest.raises(BundleInvalid, match="saturated") as caught:
        export(source, tmp_path / "bundle", quiet)
    assert caught.value.code == "E_PARITY"


def test_unreadable_scans_are_left_out_and_said(tmp_path):
    """The others carry the certificate."""
    folder = write_run(tmp_path / "run", scans=3)
    (folder / "parity" / "p0" / "p0-t1c.nii.gz").write_bytes(b"no image")
    (folder / "parity" / "p1" / "p1-t1c.nii.gz").unlink()
    lines = []
    made = export(Source.of(folder), tmp_path / "bundle", lines.append)
    assert [scan.scan for scan in made.certificate.scans] == ["p2"]
    assert sum("is left out: E_" in line for line in lines) == 2


def one_modality(end: str):
    """A foreign network: one input, two classes."""
    spec = toy_spec(
        modalities=(Modality("t1c", ("t1c",)),),
        labels=(Label(1, "tumour"),),
        regions=(Region("WT", (1,)),),
        activation="softmax",
        channels=(0, 1),
        divisor=(2, 2, 2),
    )
    source = image(spec)
    x = layers.MaxPooling3D()(layers.Conv3D(4, 3, padding="same", activation="relu")(source))
    x = layers.UpSampling3D()(layers.Conv3D(4, 3, padding="same", activation="elu")(x))
    head = layers.Conv3D(2, 1, name="head", activation="softmax" if end == "fused" else None)
    x = head(joined(x, source))
    return spec, randomise(keras.Model(source, x if end == "fused" else layers.Softmax()(x)), 4)


def four_sigmoids(end: str):
    """A foreign network that ends in its activation, trained in mixed precision or not."""
    spec = toy_spec(divisor=(1, 1, 1))
    keras.config.set_dtype_policy("mixed_float16" if end == "mixed" else "float32")
    try:
        source = image(spec)
        x = layers.GroupNormalization(-1)(layers.Conv3D(6, 3, padding="same")(source))
        head = layers.Conv3D(3, 1, name="head", activation="sigmoid", dtype="float32")
        return spec, randomise(keras.Model(source, head(joined(layers.ReLU()(x), source))))
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize(
    ("make", "end"),
    [(one_modality, "fused"), (one_modality, "layer"), (four_sigmoids, "plain"), (four_sigmoids, "mixed")],
)
def test_models_of_others_are_exported_with_a_spec(tmp_path, make, end):
    """Any number of channels and classes, sigmoid or softmax, fused or not, mixed precision or not."""
    spec, model = make(end)
    folder = write_run(tmp_path / "theirs", spec, model)
    (folder / "model.keras").rename(tmp_path / "their.keras")
    source = Source.of(tmp_path / "their.keras", folder / "spec.json", folder / "parity")
    words = "## What failed\n\nA cyst."
    made = export(source, tmp_path / "bundle", quiet, licence=Licence.of("CC-BY-4.0"), notes=words)
    assert all(parity.passed for parity in made.certificate.parities)
    assert made.manifest["licence"] == "CC-BY-4.0"
    assert words in made.read("MODEL_CARD.md").decode()
    assert ("mixed_float16" in made.certificate.reference) == (end == "mixed")


def test_an_unknown_layer_goes_through_tf2onnx_only_when_asked(tmp_path):
    """The refusal names layer and option; the bundle says which way it came."""
    spec = toy_spec()
    source = image(spec)
    x = layers.LayerNormalization(name="strange")(layers.Conv3D(6, 3, padding="same")(source))
    model = randomise(keras.Model(source, layers.Conv3D(3, 1, name="head")(joined(x, source))))
    run = write_run(tmp_path / "run", spec, model)
    with pytest.raises(BundleInvalid, match=r"'strange' \(LayerNormalization\)") as caught:
        export(Source.of(run), tmp_path / "bundle", quiet)
    assert "--via tf2onnx" in caught.value.remedy
    made = export(Source.of(run), tmp_path / "bundle", quiet, via="tf2onnx")
    assert made.manifest["provenance"]["via"] == "tf2onnx"
    assert {parity.graph for parity in made.certificate.parities} == {"model.onnx", "model.fp16.onnx"}
    assert "no second converter" in made.certificate.parities[0].proves


def test_a_licence_is_a_file_or_a_name(tmp_path):
    """And where there is none, the bundle says that."""
    text = tmp_path / "LICENSE.txt"
    text.write_text("\n  The Licence of Somebody\n\nDo what you like.\n")
    assert Licence.of(str(text)).name == "The Licence of Somebody"
    assert Licence.of(str(text)).text == text.read_text()
    assert "MIT" in Licence.of("MIT").text
    assert Licence.of(None).name == "not stated"


def test_what_is_missing_is_the_users_mistake(run, tmp_path):
    """A bare model needs a spec and scans; every path must be there."""
    with pytest.raises(UsageRefused) as caught:
        Source.of(run / "model.keras")
    assert caught.value.code == "E_USAGE"
    with pytest.raises(UsageRefused) as caught:
        Source.of(run, scans=tmp_path / "nowhere")
    assert caught.value.code == "E_INPUT_MISSING"


def test_a_folder_without_scans_is_no_proof(run, tmp_path):
    """E_NO_SCANS, before anything is written."""
    (tmp_path / "scans").mkdir()
    with pytest.raises(ScanRefused) as caught:
        export(Source.of(run, scans=tmp_path / "scans"), tmp_path / "bundle", quiet)
    assert caught.value.code == "E_NO_SCANS"
    assert not (tmp_path / "bundle").exists()


def test_four_scans_are_enough(run, tmp_path):
    """Those with the largest regions, where a single voxel decides least."""
    for n in range(5):
        write_scan(tmp_path / "scans" / f"q{n}", blobs(seed=n)[0])
    volumes = {f"q{n}": int((blobs(seed=n)[1] == 3).sum()) for n in range(5)}
    made = export(Source.of(run, scans=tmp_path / "scans"), tmp_path / "bundle", quiet)
    used = [scan.scan for scan in made.certificate.scans]
    assert len(used) == 4
    assert min(volumes[scan] for scan in used) >= min(volumes.values())


def test_a_certificate_that_was_edited_is_judged_anew(bundle, tmp_path):
    """Even with every hash in order: verdicts come from figures, and figures belong to graphs."""
    from brainseg_runtime.bundle import write_bundle

    def remade(change):
        certificate = json.loads(bundle.read("certificate.json"))
        change(certificate)
        files = {name: bundle.read(name) for name in bundle.manifest["files"]}
        files["certificate.json"] = json.dumps(certificate).encode()
        again = write_bundle(
            tmp_path / "again", bundle.spec, files, provenance={}, licence="", intended_use=""
        )
        return {check.code for check in verify.checks(again.folder)}

    assert remade(lambda c: None) == {None}
    assert "E_PARITY" in remade(lambda c: c["parities"][1].update(logits=0.5, passed=True))
    assert "E_PARITY" in remade(lambda c: c["scans"][0]["regions_ml"].update(ET=0.0))
    assert "E_PARITY" in remade(lambda c: c.update(scans=[]))
    assert "E_UNCERTIFIED" in remade(lambda c: c["parities"][2].update(graph_sha256="0" * 64))
