"""Slices of figshare all the way: imported, trained in 2.5D with the tumour's type, exported, segmented."""

import json
from dataclasses import replace

import nibabel
import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="trainer and export are not installed (CI installs them)")

from brainseg_export.cli import app as export_app
from brainseg_runtime.bundle import Bundle
from brainseg_runtime.cli import app as runtime_app
from brainseg_runtime.errors import ScanRefused
from brainseg_runtime.scans import find_scans, read
from brainseg_runtime.segmenter import Segmenter, load
from brainseg_trainer.config import load as load_config
from brainseg_trainer.figshare import import_slices
from brainseg_trainer.fit import fit
from brainseg_trainer.keras_engine import keras_engine
from brainseg_trainer.networks import load_network
from brainseg_trainer.run import RunFolder
from figshare_files import write_download
from typer.testing import CliRunner

# Keras turns TensorFlow's variables into arrays in a way that numpy 2 will end.
KERAS = "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
pytestmark = pytest.mark.filterwarnings(KERAS)


def quiet(*_):
    """A report that nobody reads."""


def light_up(path, truth):
    """Make the tumour bright, so that a short training finds it."""
    image = nibabel.load(path)
    brighter = np.asarray(image.dataobj) + 4000 * np.asarray(nibabel.load(truth).dataobj).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(brighter, image.affine, image.header), path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Scans, a short run on them, and its bundle."""
    folder = tmp_path_factory.mktemp("slices")
    import_slices(write_download(folder / "download"), folder / "scans", {}, quiet)
    for path in folder.glob("scans/*/*_t1c.nii.gz"):
        light_up(path, path.with_name(path.name.replace("t1c", "seg")))
    config = load_config("figshare")
    config = replace(
        config,
        network=replace(config.network, width=4, depth=3),
        data=replace(config.data, tile=(64, 64, 3), validation=0.4),
        training=replace(config.training, steps=40, batch=4, learning_rate=1e-2, warmup=4, validate_every=40),
    )
    run = RunFolder(folder / "run")
    run.begin(config)
    fit(folder / "scans", run, quiet)
    done = CliRunner().invoke(export_app, ["bundle", str(run.path), "-o", str(folder / "bundle")])
    assert done.exit_code == 0, done.output
    return folder


@pytest.mark.parametrize("engine", ["ort", "openvino"])
def test_stacks_and_single_slices_become_masks_and_types(made, engine, tmp_path):
    """Every stack has a mask on its own grid and a type; pictures and pages are made of one slice too."""
    wanted = ["--engine", engine, "--preview", "--report", "--gif", "--probabilities"]
    done = CliRunner().invoke(
        runtime_app,
        ["infer", str(made / "scans"), "-m", str(made / "bundle"), "-o", str(tmp_path), *wanted],
    )
    assert done.exit_code == 0, done.output
    scans = find_scans(made / "scans", Bundle.open(made / "bundle").spec).scans
    assert sorted(read(scan).geometry.shape[2] for scan in scans) == [1, 2, 3, 3]
    for scan in scans:
        record = json.loads((tmp_path / f"{scan.id}_seg.json").read_bytes())
        mask = nibabel.load(tmp_path / f"{scan.id}_seg.nii.gz")
        source = nibabel.load(scan.files[0].path)
        assert mask.shape == source.shape
        np.testing.assert_array_equal(mask.affine, source.affine)
        assert bool(np.asarray(mask.dataobj).any()) == (record["type"] is not None)
        if record["type"]:
            assert set(record["type"]["probabilities"]) == {"meningioma", "glioma", "pituitary"}
            page = (tmp_path / f"{scan.id}_report.html").read_text()
            assert f"Type, as the model estimates it: {record['type']['name']}." in page
        for suffix in ("seg.png", "seg.gif", "report.html", "prob.nii.gz"):
            assert (tmp_path / f"{scan.id}_{suffix}").stat().st_size > 500
    assert (tmp_path / "volumes.csv").read_text().splitlines()[0] == "scan,model,TUMOUR_ml,type,flags"


def test_the_bundle_tells_what_keras_tells(made):
    """On whole stacks the deployed network's mask and type are those of the Keras model."""
    spec = Bundle.open(made / "bundle").spec
    assert spec.types
    assert spec.thin
    network = load_network(made / "run" / "model.keras")
    with load(made / "bundle", "ort") as deployed, Segmenter(spec, keras_engine(network)) as trained:
        for scan in find_scans(made / "scans", spec).scans:
            ours, theirs = deployed.segment(read(scan)), trained.segment(read(scan))
            assert np.mean(ours.labels != theirs.labels) < 1e-4
            if theirs.record["type"]:
                assert ours.record["type"]["name"] == theirs.record["type"]["name"]
                for name, share in theirs.record["type"]["probabilities"].items():
                    assert ours.record["type"]["probabilities"][name] == pytest.approx(share, abs=1e-3)


def test_metrics_say_how_often_the_type_was_right(made):
    """The run's metrics hold what was said and what is of every held-out stack, and the share that agrees."""
    found = json.loads((made / "run" / "metrics.json").read_bytes())["validation"]
    told = [scan["type"] for scan in found["scans"].values()]
    assert {scan["is"] for scan in told} <= {"meningioma", "glioma", "pituitary"}
    assert found["type_accuracy"] == pytest.approx(np.mean([scan["said"] == scan["is"] for scan in told]))


def test_a_network_of_volumes_still_refuses_a_slice(made):
    """The same files, for a model that wants a whole head, are refused with a code."""
    spec = Bundle.open(made / "bundle").spec
    spec = replace(spec, divisor=(4, 4, 4), tile=(64, 64, 64), scheme="tiles", halo=0)
    lone = next(s for s in find_scans(made / "scans", spec).scans if s.id == "100360_0007-0007")
    with pytest.raises(ScanRefused, match=r"E_NDIM|E_DIMS"):
        read(lone)
