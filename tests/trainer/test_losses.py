"""The loss against an independent reference in float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from brainseg_trainer.losses import SMOOTH, dice_bce


def reference(masks, logits):
    """Dice plus cross-entropy, region by region, straight from the definitions."""
    masks, logits = masks.astype(np.float64), logits.astype(np.float64)
    total = 0.0
    for r in range(masks.shape[-1]):
        y, x = masks[..., r].ravel(), logits[..., r].ravel()
        p = 1 / (1 + np.exp(-x))
        dice = (2 * (p * y).sum() + SMOOTH) / (p.sum() + y.sum() + SMOOTH)
        entropy = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
        total += (1 - dice) + entropy
    return total / masks.shape[-1]


@pytest.fixture
def batch():
    rng = np.random.default_rng(1)
    masks = (rng.random((2, 6, 5, 4, 3)) < [0.3, 0.1, 0.02]).astype(np.float32)
    return masks, rng.normal(0, 3, masks.shape).astype(np.float32)


def test_the_loss_is_what_its_definition_says(batch):
    """The float32 loss equals the float64 reference to six digits."""
    assert float(dice_bce(*batch)) == pytest.approx(reference(*batch), rel=1e-6)


def test_the_gradient_is_that_of_the_reference(batch):
    """The gradient equals central differences of the float64 reference."""
    masks, logits = batch
    variable = tf.Variable(logits)
    with tf.GradientTape() as tape:
        loss = dice_bce(masks, variable)
    gradient = tape.gradient(loss, variable).numpy()
    for index in [(0, 0, 0, 0, 0), (1, 5, 4, 3, 1), (0, 2, 3, 1, 2)]:
        up, down = logits.astype(np.float64), logits.astype(np.float64)
        up[index] += 1e-4
        down[index] -= 1e-4
        slope = (reference(masks, up) - reference(masks, down)) / 2e-4
        assert gradient[index] == pytest.approx(slope, rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("logit", [-200.0, 0.0, 200.0])
def test_an_empty_truth_gives_finite_values(logit):
    """Without any tumour, loss and gradient are numbers, even where the network is far too sure."""
    variable = tf.Variable(np.full((1, 4, 4, 4, 3), logit, np.float32))
    with tf.GradientTape() as tape:
        loss = dice_bce(np.zeros((1, 4, 4, 4, 3), np.float32), variable)
    assert np.isfinite(loss)
    assert np.isfinite(tape.gradient(loss, variable).numpy()).all()


def test_the_right_answer_costs_nothing(batch):
    """Logits that are right and sure have a loss of 0; half-precision inputs are summed in float32."""
    masks, _ = batch
    assert float(dice_bce(masks, 40 * masks - 20)) == pytest.approx(0.0, abs=1e-5)
    half = dice_bce(masks.astype(np.float16), (40 * masks - 20).astype(np.float16))
    assert keras.backend.standardize_dtype(half.dtype) == "float32"
