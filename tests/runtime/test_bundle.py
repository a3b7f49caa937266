"""A bundle is whole, or it is not opened."""

import json
import shutil

import numpy as np
import pytest
from brainseg_runtime.bundle import Bundle
from brainseg_runtime.certificate import BOUNDS, Certificate
from brainseg_runtime.errors import BundleInvalid, OutputUnwritable
from brainseg_runtime.segmenter import load
from toys import toy_bundle, toy_certificate, toy_graph, toy_spec


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A sound bundle's folder."""
    folder = tmp_path_factory.mktemp("bundles") / "toy"
    toy_bundle(folder)
    return folder


def test_what_was_written_is_what_is_opened(good):
    """Spec, graph and golden tile come back as they were."""
    bundle = Bundle.open(good)
    assert bundle.spec == toy_spec()
    assert bundle.graph("fp32") == toy_graph(toy_spec())
    assert bundle.golden().tile.shape == (8, 8, 8, 4)
    assert bundle.manifest["licence"] == "CC0-1.0"


@pytest.mark.parametrize("seed", range(200))
def test_a_flipped_bit_anywhere_is_refused(good, tmp_path, seed):
    """200 single bits, spread over every file of the bundle, manifest and digest included."""
    rng = np.random.default_rng(seed)
    folder = shutil.copytree(good, tmp_path / "copy")
    files = sorted(folder.iterdir())
    path = files[seed % len(files)]
    data = bytearray(path.read_bytes())
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    path.write_bytes(data)
    with pytest.raises(BundleInvalid):
        load(folder)


def test_a_missing_or_added_file_is_refused(good, tmp_path):
    """What the manifest lists is there, and nothing else is."""
    for name in (path.name for path in sorted(good.iterdir())):
        folder = shutil.copytree(good, tmp_path / f"without-{name}")
        (folder / name).unlink()
        with pytest.raises(BundleInvalid):
            Bundle.open(folder)
    folder = shutil.copytree(good, tmp_path / "more")
    (folder / "plan.trt").write_bytes(b"code")
    with pytest.raises(BundleInvalid, match=r"plan\.trt"):
        Bundle.open(folder)
    folder = shutil.copytree(good, tmp_path / "link")
    (folder / "LICENSE").unlink()
    (folder / "LICENSE").symlink_to(good / "LICENSE")
    with pytest.raises(BundleInvalid, match="LICENSE"):
        Bundle.open(folder)


def test_a_file_replaced_after_opening_is_not_used(good, tmp_path):
    """The bytes that were hashed are the bytes that are loaded."""
    folder = shutil.copytree(good, tmp_path / "swapped")
    bundle = Bundle.open(folder)
    (folder / "model.onnx").write_bytes(b"other")
    with pytest.raises(BundleInvalid, match="E_BUNDLE_DAMAGED"):
        bundle.graph("fp32")


def test_no_path_leads_out_of_a_bundle(good):
    """Only the names in the manifest can be read."""
    bundle = Bundle.open(good)
    for name in ("../toy/model.onnx", "/etc/hostname", "manifest.json"):
        with pytest.raises(BundleInvalid):
            bundle.read(name)


def test_a_folder_that_is_no_bundle_is_said_to_be_none(tmp_path):
    """A wrong path is told apart from a damaged bundle."""
    with pytest.raises(BundleInvalid, match="E_NOT_BUNDLE"):
        Bundle.open(tmp_path)
    with pytest.raises(BundleInvalid, match="E_NOT_BUNDLE"):
        Bundle.open(tmp_path / "nowhere")


def test_an_engine_that_misses_the_golden_tile_is_refused(tmp_path):
    """A bundle whose golden tile is another network's does not load."""
    other = toy_bundle(tmp_path / "other", toy_spec(name="other"))
    golden = other.golden()
    wrong = type(golden)(golden.tile, golden.logits + 0.1)
    toy_bundle(tmp_path / "toy", **{"selftest.npz": wrong.to_npz()})
    with pytest.raises(BundleInvalid, match="E_SELFTEST"):
        load(tmp_path / "toy")


def test_a_bundle_replaces_a_bundle_and_nothing_else(tmp_path):
    """Writing over a bundle is fine, writing over somebody's folder is not."""
    toy_bundle(tmp_path / "toy")
    toy_bundle(tmp_path / "toy")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    with pytest.raises(OutputUnwritable, match="not a bundle"):
        toy_bundle(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter1.txt").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_certificate_is_judged_by_its_figures(tmp_path):
    """A verdict written into the file by hand does not count."""
    certificate = toy_certificate(b"graph", logits=0.5)
    raw = json.loads(certificate.to_json())
    assert raw["parities"][0]["passed"] is False
    raw["parities"][0]["passed"] = True
    again = Certificate.from_json(json.dumps(raw))
    assert not again.parities[0].passed
    assert again.to_json() == certificate.to_json()
    assert BOUNDS["fp32"].logits == 1e-3
    with pytest.raises(BundleInvalid, match="E_BUNDLE_FORMAT"):
        Certificate.from_json("{}")
