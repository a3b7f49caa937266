"""The state of a network in training: what a step changes, what it leaves, and what comes back."""

import keras
import numpy as np
import pytest
from brainseg_runtime.errors import EngineUnavailable, UsageRefused
from brainseg_trainer.config import Network, Training
from brainseg_trainer.learner import Learner
from brainseg_trainer.networks import build_network

TRAINING = Training(20, 2, 1e-2, 2, 1e-2, 20, 0.0)


def learner(training=TRAINING, width=2):
    keras.utils.set_random_seed(0)
    return Learner(build_network(Network("s2d", width, 2), 4, 3), training)


def batches(count):
    rng = np.random.default_rng(0)
    for _ in range(count):
        images = rng.normal(1.0, 2.0, (2, 8, 8, 8, 4)).astype(np.float32)
        yield images, (images[..., :3] > 2).astype(np.float32)


def test_a_restored_state_takes_the_same_next_step(tmp_path):
    """Weights, statistics, optimiser and schedule come back: the next step is the same to the last bit."""
    one, two = learner(), learner()
    *first, last = batches(4)
    for batch in first:
        one.step(*batch)
    one.save(tmp_path / "state.npz", {"step": 3, "losses": [0.1]})
    assert two.restore(tmp_path / "state.npz") == {"step": 3, "losses": [0.1]}
    assert one.learning_rate == two.learning_rate
    assert one.step(*last) == two.step(*last)
    for a, b in zip(one.network.variables, two.network.variables, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_state_of_another_network_is_refused(tmp_path):
    """A checkpoint that is damaged or of another network is refused before any weight changes."""
    learner().save(tmp_path / "state.npz", {})
    with pytest.raises(UsageRefused, match="another network"):
        learner(width=3).restore(tmp_path / "state.npz")
    (tmp_path / "state.npz").write_bytes((tmp_path / "state.npz").read_bytes()[:-100])
    with pytest.raises(UsageRefused, match="damaged"):
        learner().restore(tmp_path / "state.npz")


def test_recalibration_measures_the_mean_over_batches():
    """Batch norm's statistics become the mean over batches of what each batch has; no weight changes."""
    made = learner()
    before = [np.array(w) for w in made.network.trainable_variables]
    images = [batch[0] for batch in batches(3)]
    made.recalibrate(images)
    norm = next(n for n in made.network.layers if isinstance(n, keras.layers.BatchNormalization))
    reach = keras.Model(made.network.input, norm.input)
    seen = [np.array(reach(batch, training=False), np.float64) for batch in images]
    everywhere = (0, 1, 2, 3)
    mean = np.mean([s.mean(everywhere) for s in seen], axis=0)
    variance = np.mean([s.var(everywhere) for s in seen], axis=0)
    np.testing.assert_allclose(norm.moving_mean, mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, variance, rtol=1e-4)
    for a, b in zip(before, made.network.trainable_variables, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_learning_rate_rises_and_falls():
    """A linear rise to the peak, a cosine to 0."""
    made = learner(Training(10, 2, 1e-2, 4, 0.0, 10, 0.0))
    rates = []
    for batch in batches(10):
        rates.append(made.learning_rate)
        made.step(*batch)
    np.testing.assert_allclose(rates[:5], np.arange(5) / 4 * 1e-2, rtol=1e-5)
    assert (np.diff(rates[4:]) < 0).all()
    assert made.learning_rate == pytest.approx(0.0, abs=1e-8)


def test_decay_spares_norms_and_biases():
    """Weight decay shrinks kernels and leaves scales, offsets and biases alone."""
    steps = [learner(Training(10, 2, 1e-2, 0, decay, 10, 0.0)) for decay in (0.0, 0.5)]
    batch = next(batches(1))
    for made in steps:
        made.step(*batch)
    plain, decayed = (made.network.trainable_variables for made in steps)
    for a, b in zip(plain, decayed, strict=True):
        assert (np.array_equal(a, b)) == (a.name != "kernel"), a.path


def test_divergence_stops_the_run():
    """A loss that is no number ends the run with a code, not with a useless model."""
    made = learner()
    images, masks = next(batches(1))
    with pytest.raises(EngineUnavailable) as refusal:
        made.step(images * np.float32(np.nan), masks)
    assert refusal.value.code == "E_ENGINE_FAILED"
