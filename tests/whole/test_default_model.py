"""The model that answers where none is named: what it takes, refuses, and reaches on a real scan."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from brainseg_runtime import default_model as home
from brainseg_runtime.bundle import Bundle
from brainseg_runtime.errors import EngineUnavailable
from brainseg_runtime.overlap import dice
from brainseg_runtime.segmenter import load

PROGRAM = Path(sys.executable).with_name("brainseg-infer")
FG = "tcga-lgg/TCGA-FG-6692"
WORDS = {"t1": "t1", "t1c": "t1c", "t2": "t2", "flair": "fla"}


@pytest.fixture(scope="module")
def bundle():
    return Bundle.open(home.default_model())


@pytest.fixture
def real(data_root, tmp_path):
    """Lays a real scan out under names of ours, with as many of its modalities as are named."""

    def laid(*modalities):
        folder = tmp_path / "scans" / "real"
        folder.mkdir(parents=True)
        for m in modalities:
            source = data_root / FG / "raw_bet" / f"OtherEXampleFromTCIA_{WORDS[m]}_bet.nii.gz"
            (folder / f"real_{m}.nii.gz").write_bytes(source.read_bytes())
        return folder.parent

    return laid


def run(*arguments):
    return subprocess.run([str(PROGRAM), *map(str, arguments)], capture_output=True, text=True, check=False)


def test_it_is_small_and_says_what_it_is(bundle):
    """At most 20 MB; its licence is the distribution's; the card has what was measured."""
    sizes = [path.stat().st_size for path in bundle.folder.iterdir()]
    assert sum(sizes) < 20e6
    root = Path(__file__).parents[2]
    assert bundle.read("LICENSE") == (root / "glioma" / "LICENSE").read_bytes()
    card = bundle.read("MODEL_CARD.md").decode()
    assert (root / "glioma" / "README.md").read_text().strip() in card
    assert "Research use only. Not a medical device" in card
    assert "TCGA-FG-6692" in card


def test_where_it_is_missing_the_line_that_installs_it_is_told(monkeypatch):
    """No other model is taken in its place."""
    monkeypatch.setattr(home, "MODULE", "brainseg_no_such_model")
    with pytest.raises(EngineUnavailable, match=r"(?s)E_EXTRA_MISSING.*brainseg-runtime\[model\]"):
        load()


@pytest.mark.data
def test_a_real_scan_without_naming_a_model(real, data_root, tmp_path):
    """It is said which model answers; what its card promises of this patient, which it never saw, holds."""
    done = run(real("t1", "t1c", "t2", "flair"), "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "model brainseg-glioma, the default" in done.stdout
    truth = nibabel.load(data_root / FG / "gt_from_BraTS20_Training_320_128grid_upsampled.nii.gz")
    mask = nibabel.load(tmp_path / "out" / "real_seg.nii.gz")
    assert dice(np.asanyarray(mask.dataobj) > 0, np.asanyarray(truth.dataobj) > 0) >= 0.65


@pytest.mark.data
def test_t1c_and_flair_do_and_the_result_says_so(real, tmp_path):
    """Each absent modality is flagged in the JSON; the tumour is still found."""
    done = run(real("t1c", "flair"), "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out" / "real_seg.json").read_bytes())
    assert [flag["code"] for flag in record["flags"]].count("Q_ABSENT") == 2
    assert record["volumes_ml"]["WT"] > 10


@pytest.mark.data
@pytest.mark.parametrize("modalities", [("t1",), ("t1c",), ("flair",), ("t1", "t1c", "t2"), ("t2", "flair")])
def test_less_is_refused(real, tmp_path, modalities):
    """By name, with exit status 3, and nothing is written for it."""
    done = run(real(*modalities), "-o", tmp_path / "out")
    assert done.returncode == 3
    assert "E_MODALITY_MISSING" in done.stderr
    assert not list((tmp_path / "out").glob("*_seg*"))
