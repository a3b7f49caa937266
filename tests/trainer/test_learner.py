"""The state of a network in training: what a step changes, what it leaves, and what comes back."""

from dataclasses import replace

import keras
import numpy as np
import pytest
from brainseg_runtime.errors import EngineUnavailable, UsageRefused
from brainseg_trainer.config import Loss, Network, Training
from brainseg_trainer.learner import Learner, precision_of
from brainseg_trainer.losses import loss_of
from brainseg_trainer.networks import build_network

TRAINING = Training(20, 2, 1e-2, 2, 1e-2, 20, 0.0)


def learner(training=TRAINING, width=2):
    keras.utils.set_random_seed(0)
    return Learner(build_network(Network("s2d", width, 2), 4, 3), training, loss_of(Loss(), "sigmoid"))


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


def test_scoring_measures_statistics_and_leaves_no_trace():
    """Batch norm's statistics become the mean over batches of each batch's; afterwards all is as before."""
    made = learner()
    before = [np.array(w) for w in made.network.variables]
    images = [batch[0] for batch in batches(3)]
    with made.as_scored(images) as network:
        norm = next(n for n in network.layers if isinstance(n, keras.layers.BatchNormalization))
        reach = keras.Model(network.input, norm.input)
        seen = [np.array(reach(batch, training=False), np.float64) for batch in images]
        everywhere = (0, 1, 2, 3)
        mean = np.mean([s.mean(everywhere) for s in seen], axis=0)
        variance = np.mean([s.var(everywhere) for s in seen], axis=0)
        np.testing.assert_allclose(norm.moving_mean, mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(norm.moving_variance, variance, rtol=1e-4)
    for a, b in zip(before, made.network.variables, strict=True):
        np.testing.assert_array_equal(a, b)


PEAK = 1e-2
WAYS_DOWN = {
    "cosine": lambda t, n: (1 + np.cos(np.pi * t)) / 2,
    "poly": lambda t, n: (1 - t) ** 0.9,
    "exponential": lambda t, n: 0.985 ** (n / 100),
    "constant": lambda t, n: np.ones_like(t),
}


@pytest.mark.parametrize("schedule", WAYS_DOWN)
def test_the_learning_rate_rises_and_follows_its_schedule(schedule):
    """A linear rise to the peak, then the published way down, over all the steps that are left."""
    made = learner(replace(TRAINING, steps=10, warmup=4, schedule=schedule))
    rates = []
    for batch in batches(10):
        rates.append(made.learning_rate)
        made.step(*batch)
    rates.append(made.learning_rate)
    np.testing.assert_allclose(rates[:5], np.arange(5) / 4 * PEAK, rtol=1e-5)
    after = np.arange(7)
    expected = PEAK * WAYS_DOWN[schedule](after / 6, after)
    np.testing.assert_allclose(rates[4:], expected, rtol=1e-5, atol=1e-9)


def test_the_mean_of_the_weights_is_scored_and_training_goes_on_with_the_weights():
    """What is scored is the running mean of the weights after each step; the weights come back untouched."""
    made = learner(replace(TRAINING, ema=0.75))
    mean = None
    for batch in batches(4):
        made.step(*batch)
        weights = [np.array(w) for w in made.network.trainable_variables]
        mean = weights if mean is None else [0.75 * m + 0.25 * w for m, w in zip(mean, weights, strict=True)]
    with made.as_scored([batch[0]]) as network:
        for expected, weight in zip(mean, network.trainable_variables, strict=True):
            np.testing.assert_allclose(weight, expected, rtol=1e-4, atol=1e-6)
    for expected, weight in zip(weights, made.network.trainable_variables, strict=True):
        np.testing.assert_array_equal(weight, expected)


def test_gradients_are_clipped_together():
    """Plain SGD moves by no more than its rate times the largest norm, in the direction that it had."""
    plain = replace(TRAINING, warmup=0, weight_decay=0.0, optimiser="sgd", schedule="constant")
    moves = []
    for training in (plain, replace(plain, clip=1e-3)):
        made = learner(training)
        before = [np.array(w) for w in made.network.trainable_variables]
        made.step(*next(batches(1)))
        pairs = zip(before, made.network.trainable_variables, strict=True)
        moves.append(np.concatenate([(np.array(w) - b).ravel() for b, w in pairs]))
    free, clipped = moves
    # Nesterov's first step is (1 + momentum) times the gradient's.
    assert np.linalg.norm(clipped) == pytest.approx(PEAK * 1e-3 * 1.99, rel=1e-3)
    assert np.linalg.norm(free) > 10 * np.linalg.norm(clipped)
    cosine = free @ clipped / np.linalg.norm(free) / np.linalg.norm(clipped)
    assert cosine == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(("precision", "computes"), [("bf16", "bfloat16"), ("fp16", "float16")])
def test_mixed_precision_keeps_weights_and_logits_in_float32(precision, computes, tmp_path):
    """Activations are in the lower precision, weights and logits not; the loss falls, state comes back."""
    with precision_of(precision):
        one, two = (learner(replace(TRAINING, precision=precision)) for _ in range(2))
    inner = next(n for n in one.network.layers if isinstance(n, keras.layers.LeakyReLU))
    assert keras.backend.standardize_dtype(inner.output.dtype) == computes
    assert {v.dtype for v in one.network.trainable_variables} == {"float32"}
    assert keras.backend.standardize_dtype(one.network.outputs[0].dtype) == "float32"
    images, truth = next(batches(1))
    losses = [one.step(images, truth) for _ in range(12)]
    assert losses[-1] < losses[0]
    one.save(tmp_path / "state.npz", {})
    two.restore(tmp_path / "state.npz")
    assert one.step(images, truth) == two.step(images, truth)


def test_auxiliary_heads_learn_a_coarser_truth_and_leave():
    """Each coarser head counts half as much, learns the share of a region in its voxels, and is not kept."""
    image = keras.Input((None, None, None, 4))
    fine = keras.layers.Conv3D(3, 1, name="logits")(image)
    coarse = keras.layers.Conv3D(3, 2, strides=2, name="coarse")(image)
    loss = loss_of(Loss(), "sigmoid")
    made = Learner(keras.Model(image, [fine, coarse]), replace(TRAINING, weight_decay=0.0), loss)
    assert [layer.name for layer in made.network.layers[1:]] == ["logits"]
    images, truth = next(batches(1))
    half = truth.reshape(2, 4, 2, 4, 2, 4, 2, 3).mean(axis=(2, 4, 6))
    whole = keras.Model(image, [fine, coarse])
    answers = [np.array(answer) for answer in whole(images)]
    parts = [float(loss(t, a)) for t, a in zip((truth, half), answers, strict=True)]
    before = np.array(whole.get_layer("coarse").kernel)
    assert made.step(images, truth) == pytest.approx((2 * parts[0] + parts[1]) / 3, rel=1e-5)
    made.step(images, truth)
    assert not np.array_equal(before, whole.get_layer("coarse").kernel)


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
