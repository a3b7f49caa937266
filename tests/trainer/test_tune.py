"""Calibration from counts, and thresholds that are chosen where they matter: on whole, unseen scans."""

from dataclasses import replace

import numpy as np
import pytest
from brainseg_runtime.errors import UsageRefused
from brainseg_runtime.nifti import write_labels
from brainseg_runtime.overlap import dice
from brainseg_runtime.segmenter import Segmenter
from brainseg_trainer import evaluate, tune
from brainseg_trainer.dataset import find_training_scans
from brainseg_trainer.scoring.calibration import (
    CANDIDATES,
    Histogram,
    best_threshold,
    brier,
    calibration_error,
    count,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from toys import mixing, toy_engine, toy_spec, toy_volume, write_scan

pairs = st.integers(1, 300).flatmap(
    lambda n: st.tuples(arrays(np.uint8, n, elements=st.integers(0, 255)), arrays(bool, n))
)


@settings(max_examples=60, deadline=None)
@given(pairs, st.sampled_from(CANDIDATES))
def test_counts_give_the_dice_of_the_voxels(pair, threshold):
    """Dice at a threshold is that of the mask it makes, without the mask."""
    p, truth = pair
    assert count(p, truth).dice(threshold) == pytest.approx(dice(p >= np.ceil(255 * threshold), truth))


@settings(max_examples=60, deadline=None)
@given(pairs)
def test_brier_is_the_mean_squared_error(pair):
    """Over the scans' voxels together, however they are split into scans."""
    p, truth = pair
    expected = np.mean((p / 255 - truth) ** 2)
    assert brier([count(p, truth)]) == pytest.approx(expected)
    half = len(p) // 2
    assert brier([count(p[:half], truth[:half]), count(p[half:], truth[half:])]) == pytest.approx(expected)


def test_honest_probabilities_have_no_calibration_error():
    """Where p says how often the truth is there, the error is near 0; where p is surer, it is the excess."""
    rng = np.random.default_rng(0)
    p = rng.integers(0, 256, 200_000).astype(np.uint8)
    honest = rng.random(p.size) < p / 255
    assert calibration_error([count(p, honest)]) < 0.005
    certain = np.full(1000, 255, np.uint8)
    assert calibration_error([count(certain, np.arange(1000) < 700)]) == pytest.approx(0.3)


def test_of_equal_thresholds_the_one_nearest_to_the_middle_is_taken():
    """A region that is nowhere leaves its threshold at 0.5; one with a gap takes the gap's nearest end."""
    nowhere = Histogram(np.eye(256, dtype=np.int64)[0] * 50, np.zeros(256, np.int64))
    assert best_threshold([nowhere]) == 0.5
    low = Histogram(np.eye(256, dtype=np.int64)[10] * 50, np.eye(256, dtype=np.int64)[60] * 50)
    assert best_threshold([low]) == 0.2


# Through the pipeline.

SPEC = toy_spec()
TRUE = {"WT": 0.3, "TC": 0.6, "ET": 0.7}


def nested_engine():
    """A network that is never surer of an inner region than of one around it."""
    weights = mixing(SPEC)

    def infer(tiles):
        return -np.sort(-(tiles @ weights), axis=-1)

    return toy_engine(SPEC, infer)


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Scans whose truth is what the toy network says at other thresholds than the spec's."""
    monkeypatch.setattr(tune, "keras_engine", lambda _: nested_engine())
    monkeypatch.setattr(evaluate, "keras_engine", lambda _: nested_engine())
    regions = tuple(replace(region, threshold=TRUE[region.name]) for region in SPEC.regions)
    with Segmenter(replace(SPEC, regions=regions), nested_engine()) as segmenter:
        for n in range(3):
            volume = toy_volume(seed=n)
            name = f"P{n}"
            write_scan(tmp_path / name, volume)
            write_labels(
                tmp_path / name / f"{name}-seg.nii.gz", segmenter.segment(volume).labels, volume.geometry
            )
    return find_training_scans(tmp_path, SPEC)


def quiet(*_):
    """A report that nobody reads."""


def test_the_thresholds_that_made_the_truth_are_found(source):
    """Whole scans score 1 with them, and the specification gets them."""
    tuning = tune.tune(None, SPEC, source, (), quiet)
    assert tuning.thresholds == pytest.approx(TRUE, abs=0.051)
    assert tuning.is_better
    assert {region.name: region.threshold for region in tuning.spec.regions} == tuning.thresholds
    assert min(tuning.after.values()) > 0.98 > min(tuning.before.values())


def test_thresholds_stay_where_nothing_is_won(source):
    """The best ones are not replaced by others that are no better."""
    best = tune.tune(None, SPEC, source, (), quiet).spec
    again = tune.tune(None, best, source, (), quiet)
    assert again.spec == best
    assert not again.is_better


def test_scans_that_were_trained_on_choose_nothing(source):
    """On them any network is too sure of itself."""
    with pytest.raises(UsageRefused, match="P1"):
        tune.tune(None, SPEC, source, ("P1",), quiet)
