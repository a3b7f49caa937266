"""Pictures of runs and of data: drawn from real small ones, and held against the numbers that they show."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from brainseg_runtime.errors import UsageRefused
from brainseg_runtime.segmenter import Segmenter
from brainseg_trainer.dataset import find_training_scans
from brainseg_trainer.figures.canvas import new_figure
from brainseg_trainer.figures.cases import cases
from brainseg_trainer.figures.comparison import draw_turning
from brainseg_trainer.figures.gallery import draw_classes
from brainseg_trainer.figures.render import render_data, render_run
from brainseg_trainer.figures.scores import agreement, draw_agreement, draw_boxes, draw_thresholds
from brainseg_trainer.fit import fit
from brainseg_trainer.keras_engine import keras_engine
from brainseg_trainer.networks import load_network
from brainseg_trainer.run import RunFolder
from brainseg_trainer.scoring.calibration import CANDIDATES, count
from brainseg_trainer.sources import open_data
from matplotlib.figure import Figure
from PIL import Image, ImageSequence

from .conftest import quiet

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(scans_folder, small_config, tmp_path_factory):
    """A short run."""
    made = RunFolder(tmp_path_factory.mktemp("runs") / "small")
    made.begin(small_config)
    fit(scans_folder, made, quiet)
    return made


@pytest.fixture
def drawn(monkeypatch):
    """Every figure that is made, kept to be looked into."""
    kept = []

    def keep(*arguments):
        kept.append(new_figure(*arguments))
        return kept[-1]

    for chapter in ("gallery", "scores", "comparison", "curves"):
        monkeypatch.setattr(f"brainseg_trainer.figures.{chapter}.new_figure", keep)
    return kept


def is_drawn(path):
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("L"))
    return min(pixels.shape) > 200 and pixels.std() > 5


def texts(figure: Figure):
    return " ".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))


def test_a_run_is_drawn_whole(run):
    """Every picture of a run is there and shows something; nothing is said to be missing."""
    said = []
    made = render_run(run, said.append)
    names = ["curves", "dice", "volumes", "comparison", "slices", "tumours", "thresholds"]
    assert sorted(path.name for path in made) == sorted([*(f"{name}.png" for name in names), "turning.gif"])
    assert all(is_drawn(path) for path in made)
    assert not said


def test_data_are_drawn(scans_folder, small_config, tmp_path, drawn):
    """Slices, tumours and volumes of a folder; every region's median is that of the truth."""
    data = open_data(scans_folder, small_config)
    made = render_data(data, tmp_path, lambda text: pytest.fail(text))
    assert [path.name for path in made] == ["slices.png", "tumours.png", "volumes.png"]
    volumes = [case.labels.volumes_ml() for case in cases(data.scans, data.scans.scans, data.spec, {})]
    for region in ("WT", "TC", "ET"):
        assert f"median {np.median([v[region] for v in volumes]):.1f} ml" in texts(drawn[-1])


def test_a_run_without_scores_is_refused(tmp_path):
    """A folder that holds no run is refused with a code."""
    with pytest.raises(UsageRefused, match="E_RUN"):
        render_run(RunFolder(tmp_path), quiet)


def test_metrics_hold_volumes(run):
    """Volumes of truth and answer stand with each scan's Dice, regions nested."""
    for scan in run.read_metrics()["validation"]["scans"].values():
        truth = [scan["volumes_ml"][region]["truth"] for region in ("WT", "TC", "ET")]
        assert truth == sorted(truth, reverse=True)
        assert truth[-1] > 0


def test_agreement_is_bland_and_altmans(tmp_path, drawn):
    """Bias and limits are the mean difference and 1.96 deviations around it, and stand in the legend."""
    rng = np.random.default_rng(0)
    truth = rng.uniform(5, 80, 30)
    answer = truth + rng.normal(2, 3, 30)
    bias, low, high = agreement(truth, answer)
    apart = answer - truth
    assert bias == pytest.approx(apart.mean())
    assert (low, high) == pytest.approx((bias - 1.96 * apart.std(ddof=1), bias + 1.96 * apart.std(ddof=1)))
    draw_agreement({"WT": (truth, answer)}, tmp_path / "a.png")
    assert f"bias {bias:+.1f} ml" in texts(drawn[0])
    (points,) = drawn[0].axes[0].collections
    np.testing.assert_allclose(points.get_offsets()[:, 1], apart)


def test_boxes_show_every_scan(tmp_path, drawn):
    """A box per region, a point per scan, the median in words."""
    dice = {"WT": [0.9, 0.8, 0.7], "ET": [0.5, 0.6, 0.1]}
    draw_boxes(dice, tmp_path / "b.png")
    points = drawn[0].axes[0].collections
    assert [sorted(p.get_offsets()[:, 1]) for p in points] == [sorted(values) for values in dice.values()]
    assert "median 0.500" in texts(drawn[0])


def test_thresholds_are_those_of_the_histograms(tmp_path, drawn):
    """The curve is the mean Dice at every candidate, IoU below it, and the model's own is marked."""
    rng = np.random.default_rng(0)
    truth = rng.random((2, 500)) < 0.3
    found = [count(np.where(t, rng.integers(90, 256, 500), rng.integers(0, 160, 500)), t) for t in truth]
    draw_thresholds({"WT": found}, {"WT": 0.45}, tmp_path / "t.png")
    dice, iou, own = drawn[0].axes[0].lines
    expected = [np.mean([scan.dice(t) for scan in found]) for t in CANDIDATES]
    np.testing.assert_allclose(dice.get_ydata(), expected)
    assert (iou.get_ydata() <= dice.get_ydata()).all()
    assert set(own.get_xdata()) == {0.45}


def test_truth_and_prediction_turn_side_by_side(run, tmp_path):
    """One turn of 30 frames; both halves show a head, and differ where the answers do."""
    spec = run.read_spec()
    kept = find_training_scans(run.parity, spec)
    with Segmenter(spec, keras_engine(load_network(run.model))) as segmenter:
        (case,) = cases(kept, kept.scans, spec, {}, segmenter)
    draw_turning(case, tmp_path / "t.gif")
    with Image.open(tmp_path / "t.gif") as picture:
        frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(picture)]
    assert len(frames) == 30
    left, right = np.split(frames[3], 2, axis=1)
    assert left.std() > 5
    assert right.std() > 5
    assert (left != right).any()
    assert (frames[0] != frames[8]).any()


def test_classes_are_counted(tmp_path, drawn):
    """A bar for each type, as high as its number, which stands above it."""
    draw_classes({"slices": {"glioma": 5, "meningioma": 3}}, tmp_path / "c.png")
    assert [bar.get_height() for bar in drawn[0].axes[0].patches] == [5, 3]
    assert "number of slices" in texts(drawn[0])


@pytest.mark.data
def test_what_is_public_of_figshare_is_drawn(data_root, tmp_path):
    """The command draws 65 real slices with masks, and counts the types of all 3064."""
    folder = data_root / "figshare-1512427-derived"
    if not folder.is_dir():
        pytest.skip("no figshare-1512427-derived among the real data")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.figshare_pairs", str(folder), "-o", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    *paths, counts = done.stdout.splitlines()
    assert json.loads(counts) == {"glioma": 1426, "meningioma": 708, "pituitary": 930}
    assert [Path(path).name for path in paths] == ["slices.png", "tumours.png", "classes.png", "all.png"]
    assert all(is_drawn(path) for path in paths)
