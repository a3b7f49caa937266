"""Each loss against its paper's definition, written anew in float64, and what all of them have to keep."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from brainseg_trainer.config import Loss
from brainseg_trainer.distances import signed_distances
from brainseg_trainer.losses import SMOOTH, TYPE_SHARE, loss_of

KINDS = [
    *("bce", "dice", "weighted_dice", "log_dice", "dice_bce", "generalized_dice", "tversky"),
    *("focal_tversky", "focal", "jaccard", "boundary"),
]
CASES = [(kind, "sigmoid") for kind in KINDS] + [
    (kind.replace("bce", "ce"), "softmax") for kind in KINDS if kind != "bce"
]
WEIGHTS = (1.0, 2.0, 5.0)
SPACING = (1.0, 2.0, 3.0)
every_case = pytest.mark.parametrize(("kind", "activation"), CASES)
every_sum = pytest.mark.parametrize("over", ["batch", "tile"])


def loss_for(kind, activation, over="batch", types=0):
    return loss_of(Loss(kind, over, WEIGHTS if kind == "weighted_dice" else ()), activation, types)


def make(activation, seed=1, shape=(2, 6, 5, 4)):
    """Random truth with rare regions, or one-hot labels with background first; and random logits."""
    rng = np.random.default_rng(seed)
    if activation == "sigmoid":
        truth = (rng.random((*shape, 3)) < [0.3, 0.1, 0.02]).astype(np.float32)
    else:
        truth = np.eye(4, dtype=np.float32)[rng.choice(4, shape, p=[0.7, 0.2, 0.08, 0.02])]
    return truth, rng.normal(0, 3, truth.shape).astype(np.float32)


def given(kind, truth):
    """The truth as the loss wants it: for ``boundary`` with distances after the masks."""
    if kind != "boundary":
        return truth
    return np.concatenate([truth, np.stack([signed_distances(t, SPACING) for t in truth])], axis=-1)


# --- the definitions, one voxel sum at a time ------------------------------------------------------


def entropies(activation, truth, logits):
    if activation == "sigmoid":
        p = 1 / (1 + np.exp(-logits))
        return -(truth * np.log(p) + (1 - truth) * np.log(1 - p))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return -np.log((truth * p).sum(-1))


def index(kind, y, p):
    """The overlap of one region."""
    tp, fp, fn = (y * p).sum(), ((1 - y) * p).sum(), (y * (1 - p)).sum()
    if kind == "jaccard":
        return (tp + SMOOTH) / (tp + fp + fn + SMOOTH)
    if "tversky" in kind:
        return (tp + SMOOTH) / (tp + 0.3 * fp + 0.7 * fn + SMOOTH)
    return (2 * tp + SMOOTH) / (2 * tp + fp + fn + SMOOTH)


def generalized(masks, answers):
    volumes = [masks[..., r].sum() for r in range(masks.shape[-1])]
    weights = [1 / v**2 if v else None for v in volumes]
    known = [w for w in weights if w is not None]
    weights = [max(known, default=1.0) if w is None else w for w in weights]
    tp = sum(w * (masks[..., r] * answers[..., r]).sum() for r, w in enumerate(weights))
    total = sum(w * (masks[..., r] + answers[..., r]).sum() for r, w in enumerate(weights))
    return (2 * tp + SMOOTH * max(weights)) / (total + SMOOTH * max(weights))


def reference(kind, activation, over, truth, logits):
    truth, logits = truth.astype(np.float64), logits.astype(np.float64)
    everything = entropies(activation, truth, logits)
    if kind == "bce":
        return everything.mean()
    if kind == "focal":
        return (everything * (1 - np.exp(-everything)) ** 2).mean()
    if activation == "sigmoid":
        masks, answers = truth, 1 / (1 + np.exp(-logits))
    else:
        probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        masks, answers = truth[..., 1:], probabilities[..., 1:]
    groups = [(masks, answers)] if over == "batch" else list(zip(masks, answers, strict=True))
    if kind == "generalized_dice":
        return np.mean([1 - generalized(y, p) for y, p in groups])
    found = np.array([[index(kind, y[..., r], p[..., r]) for r in range(3)] for y, p in groups])
    if kind == "weighted_dice":
        return 1 - (found @ np.array(WEIGHTS) / sum(WEIGHTS)).mean()
    if kind == "log_dice":
        return -np.log(found + 1e-7).mean()
    if kind == "focal_tversky":
        return (np.maximum(1 - found, 1e-6) ** 0.75).mean()
    if kind == "boundary":
        distances = np.stack([signed_distances(t.astype(np.float32), SPACING) for t in truth])
        spread = answers if activation == "sigmoid" else probabilities
        return (1 - found).mean() + (spread * distances.astype(np.float64)).mean()
    return (1 - found).mean() + (everything.mean() if kind in ("dice_bce", "dice_ce") else 0.0)


@every_case
@every_sum
def test_losses_are_what_their_definitions_say(kind, activation, over):
    """The float32 loss equals the float64 reference to five digits, and its gradient central differences."""
    truth, logits = make(activation)
    variable = tf.Variable(logits)
    with tf.GradientTape() as tape:
        loss = loss_for(kind, activation, over)(given(kind, truth), variable)
    assert float(loss) == pytest.approx(reference(kind, activation, over, truth, logits), rel=1e-5)
    gradient = tape.gradient(loss, variable).numpy()
    for place in [(0, 0, 0, 0, 0), (1, 5, 4, 3, 1), (0, 2, 3, 1, 2), (1, 3, 0, 2, 2)]:
        up, down = logits.astype(np.float64), logits.astype(np.float64)
        up[place] += 1e-4
        down[place] -= 1e-4
        higher, lower = (reference(kind, activation, over, truth, moved) for moved in (up, down))
        assert gradient[place] == pytest.approx((higher - lower) / 2e-4, rel=2e-3, abs=1e-8)


@every_case
@every_sum
@pytest.mark.parametrize("logit", [-1e4, 0.0, 1e4])
@pytest.mark.parametrize("full", [False, True])
def test_degenerate_tiles_give_finite_values(kind, activation, over, logit, full):
    """Without any tumour, or with nothing else, loss and gradient are numbers however sure the network is."""
    channels = 3 if activation == "sigmoid" else 4
    truth = np.zeros((2, 4, 4, 4, channels), np.float32)
    if activation == "softmax":
        truth[..., 3 if full else 0] = 1
    elif full:
        truth[:] = 1
    logits = np.zeros_like(truth)
    logits[..., -1] = logit
    variable = tf.Variable(logits)
    with tf.GradientTape() as tape:
        loss = loss_for(kind, activation, over)(given(kind, truth), variable)
    assert np.isfinite(loss)
    assert np.isfinite(tape.gradient(loss, variable).numpy()).all()


@every_case
@every_sum
def test_the_right_answer_cannot_be_beaten(kind, activation, over):
    """Logits that are right and sure have the least loss; mending one voxel lowers it."""
    truth, _ = make(activation, seed=2)
    right = 40 * truth - 20
    loss = loss_for(kind, activation, over)
    wrong = right.copy()
    voxel = tuple(np.argwhere(truth[..., -1] == 1)[0])
    wrong[voxel] *= -1
    best, worse = (float(loss(given(kind, truth), logits)) for logits in (right, wrong))
    assert best < worse
    if kind != "boundary":
        # The focal power is cut off where it has no slope.
        assert best == pytest.approx(0.0, abs=1e-4)


@every_case
@every_sum
def test_the_order_of_tiles_and_their_orientation_do_not_count(kind, activation, over):
    """Tiles in another order, mirrored with their truth, cost the same."""
    truth, logits = make(activation)
    truth = given(kind, truth)
    loss = loss_for(kind, activation, over)
    turned = loss(truth[::-1, :, ::-1], logits[::-1, :, ::-1])
    assert float(turned) == pytest.approx(float(loss(truth, logits)), rel=1e-5)


@every_case
@pytest.mark.parametrize("half", [np.float16, tf.bfloat16.as_numpy_dtype])
def test_half_precision_is_summed_in_float32(kind, activation, half):
    """Inputs in half precision give what the same numbers give in float32."""
    truth, logits = make(activation)
    truth, logits = given(kind, truth), logits.astype(half)
    loss = loss_for(kind, activation)
    found = loss(truth.astype(half) if kind != "boundary" else truth, logits)
    assert keras.backend.standardize_dtype(found.dtype) == "float32"
    assert float(found) == pytest.approx(float(loss(truth, logits.astype(np.float32))), rel=1e-6)


def test_each_tile_alone_is_the_mean_over_tiles():
    """Summed over each tile, a batch costs the mean of its tiles; over the batch it does not."""
    truth, logits = make("sigmoid")
    truth[1] = 0
    alone, whole = loss_for("dice", "sigmoid", "tile"), loss_for("dice", "sigmoid")
    mean = np.mean([float(alone(truth[n : n + 1], logits[n : n + 1])) for n in range(2)])
    assert float(alone(truth, logits)) == pytest.approx(mean, rel=1e-6)
    assert float(whole(truth, logits)) != pytest.approx(mean, rel=1e-3)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("kind", ["dice", "boundary"])
def test_the_type_counts_where_there_is_tumour(kind, activation):
    """Type logits add the cross-entropy over voxels of tumour, and nothing where there is none."""
    truth, logits = make(activation)
    rng = np.random.default_rng(3)
    said = rng.normal(0, 2, (*truth.shape[:-1], 2)).astype(np.float32)
    tumour = truth[..., :1] if activation == "sigmoid" else 1 - truth[..., :1]
    meant = tumour * np.array([0, 1], np.float32)
    plain = float(loss_for(kind, activation)(given(kind, truth), logits))
    typed = loss_for(kind, activation, types=2)
    both = np.concatenate([logits, said], axis=-1)
    found = float(typed(np.concatenate([given(kind, truth), meant], axis=-1), both))
    p = np.exp(said.astype(np.float64)) / np.exp(said.astype(np.float64)).sum(-1, keepdims=True)
    entropy = -np.log(p[..., 1][tumour[..., 0] == 1]).mean()
    assert found == pytest.approx(plain + TYPE_SHARE * entropy, rel=1e-5)
    variable = tf.Variable(both)
    with tf.GradientTape() as tape:
        loss = typed(np.concatenate([given(kind, truth), 0 * meant], axis=-1), variable)
    assert float(loss) == pytest.approx(plain, rel=1e-6)
    gradient = tape.gradient(loss, variable).numpy()
    assert (gradient[..., -2:] == 0).all()
    assert np.isfinite(gradient).all()


def test_distances_are_in_mm_and_negative_inside():
    """The nearest voxel of the other side by trying all pairs, in mm; 0 where there is no border."""
    rng = np.random.default_rng(0)
    masks = np.zeros((5, 6, 4, 3), np.float32)
    masks[1:4, 2:5, 1:3, 0] = 1
    masks[..., 0] *= rng.random((5, 6, 4)) < 0.7
    masks[..., 2] = 1
    found = signed_distances(masks, SPACING)
    places = np.argwhere(np.ones((5, 6, 4))) * np.array(SPACING)
    inside = masks[..., 0].ravel() == 1
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1)
    expected = np.where(inside, -apart[:, ~inside].min(1), apart[:, inside].min(1))
    np.testing.assert_allclose(found[..., 0].ravel(), expected, rtol=1e-6)
    assert (found[..., 1:] == 0).all()
