"""What training minimises: on logits, in float32, region by region.

Truth and logits are (N, i, j, k, R). A sigmoid model has a channel per region; a softmax model has one for
the background, which overlaps leave out, and one per label.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
from brainseg_runtime.spec import Activation
from keras import ops

from brainseg_trainer.config import Loss

__all__ = ["SMOOTH", "TYPE_SHARE", "LossFunction", "loss_of"]

Tensor = Any
# Keras publishes no types.
LossFunction = Callable[[Tensor, Tensor], Tensor]
"""Truth and logits -> a scalar."""
Over = Literal["batch", "tile"]

SMOOTH = 1e-5
"""Added to both sides of an overlap's fraction: a region that is rightly found absent has no gradient."""
TYPE_SHARE = 0.2
"""How much the type of a tumour counts beside its outline, as in the multi-output networks of the field."""


def loss_of(loss: Loss, activation: Activation, types: int = 0) -> LossFunction:
    """The loss that a configuration asks for.

    With ``types`` the last so many channels of the logits speak of the tumour's type, and those of the truth
    are 1 for the type where there is tumour and 0 elsewhere. For the loss ``boundary`` the truth has the
    regions' ``distances`` after their masks and before the types.
    """
    return partial(_typed, partial(KINDS[loss.kind], loss, activation), types)


# --- the kinds ------------------------------------------------------------------------------------


def _bce(loss: Loss, activation: Activation, truth: Tensor, logits: Tensor) -> Tensor:
    """Cross-entropy: binary per region, or categorical over a softmax model's channels."""
    return ops.mean(_entropy(activation, truth, logits))


def _dice(loss: Loss, activation: Activation, truth: Tensor, logits: Tensor) -> Tensor:
    """1 - Dice, the mean over regions (Milletari et al. 2016, with sums in the denominator)."""
    return 1.0 - ops.mean(_dices(loss, activation, truth, logits))


def _weighted_dice(loss: Loss, activation: Activation, truth: Tensor, logits: Tensor) -> Tensor:
    """1 - Dice, regions weighted as the configuration says."""
    weights = np.array(loss.weights, np.float32) / np.sum(loss.weights, dtype=np.float32)
    return 1.0 - ops.mean(ops.sum(_dices(loss, activation, truth, logits) * weights, axis=-1))


def _log_dice(loss: Loss, activation: Activation, truth: Tensor, logits: Tensor) -> Tensor:
    """-log(Dice), which is steep where Dice is small (IntelAI/unet)."""
    return -ops.mean(ops.log(_dices(loss, activation, truth, logits) + 1e-7))


def _dice_entropy(loss: Loss, activation: Activation, truth: Tensor, logits: Tensor) -> Tensor:
    """Dice and cross-entropy, as nnU-Net adds them (Isensee et al. 2021)."""
    return _dice(loss, activation, truth, logits) + _bce(loss, activation, truth, logits)


def _generalized_dice(loss: Loss, activation: Activation, truth: Tensor, logits: Tensor) -> Tensor:
    """1 - generalized Dice: regions weighted by 1 / volume^2 of their truth (Sudre et al. 2017).

    An absent region would weigh infinitely; it is given the largest weight that a present one has, or 1.
    """
    masks, answers = _overlapping(activation, truth, logits)
    axes = _axes(loss.over, masks)
    volumes = ops.sum(masks, axis=axes)
    present = ops.cast(volumes > 0, "float32")
    weights = present / ops.square(ops.maximum(volumes, 1.0))
    largest = ops.max(weights, axis=-1, keepdims=True)
    weights = weights + (1.0 - present) * ops.where(largest > 0, largest, ops.ones_like(largest))
    shared = ops.sum(weights * ops.sum(masks * answers, axis=axes), axis=-1)
    total = ops.sum(weights * (volumes + ops.sum(answers, axis=axes)), axis=-1)
    # Weights are as small as volumes are large, and the smoothing must not outgrow them.
    smooth = SMOOTH * ops.max(weights, axis=-1)
    return 1.0 - ops.mean((2.0 * shared + smooth) / (total + smooth))


def _tversky(loss: Loss, activation: Activation, truth: Tensor, logits: Tensor) -> Tensor:
    """1 - Tversky's index with 0.3 for false positives, 0.7 for false negatives (Salehi et al. 2017)."""
    return 1.0 - ops.mean(_tverskys(loss, activation, truth, logits))


def _focal_tversky(loss: Loss, activation: Activation, truth: Tensor, logits: Tensor) -> Tensor:
    """(1 - Tversky's index)^(1 / gamma) with gamma 4/3 (Abraham and Khan 2019), the mean over regions."""
    # The power has no slope at 0.
    missing = ops.maximum(1.0 - _tverskys(loss, activation, truth, logits), 1e-6)
    return ops.mean(missing**0.75)


def _focal(loss: Loss, activation: Activation, truth: Tensor, logits: Tensor) -> Tensor:
    """Cross-entropy times (1 - p)^2, p being the probability of what is true (Lin et al. 2017)."""
    entropy = _entropy(activation, truth, logits)
    return ops.mean(entropy * ops.square(1.0 - ops.exp(-entropy)))


def _jaccard(loss: Loss, activation: Activation, truth: Tensor, logits: Tensor) -> Tensor:
    """1 - intersection over union, the mean over regions."""
    shared, masks, answers = _sums(loss, activation, truth, logits)
    return 1.0 - ops.mean((shared + SMOOTH) / (masks + answers - shared + SMOOTH))


def _boundary(loss: Loss, activation: Activation, truth: Tensor, logits: Tensor) -> Tensor:
    """Dice, and the mean of probability times distance to the border (Kervadec et al. 2019)."""
    channels = logits.shape[-1]
    masks, distances = truth[..., :channels], truth[..., channels:]
    answers = _probabilities(activation, logits)
    return _dice(loss, activation, masks, logits) + ops.mean(answers * distances)


KINDS: dict[str, Callable[[Loss, Activation, Tensor, Tensor], Tensor]] = {
    "bce": _bce,
    "dice": _dice,
    "weighted_dice": _weighted_dice,
    "log_dice": _log_dice,
    "dice_bce": _dice_entropy,
    "dice_ce": _dice_entropy,
    "generalized_dice": _generalized_dice,
    "tversky": _tversky,
    "focal_tversky": _focal_tversky,
    "focal": _focal,
    "jaccard": _jaccard,
    "boundary": _boundary,
}


# --- what they are made of ------------------------------------------------------------------------


def _typed(outline: LossFunction, types: int, truth: Tensor, logits: Tensor) -> Tensor:
    """The loss of the outline, and the cross-entropy of the type over the voxels of tumour."""
    truth, logits = ops.cast(truth, "float32"), ops.cast(logits, "float32")
    if not types:
        return outline(truth, logits)
    said, meant = logits[..., -types:], truth[..., -types:]
    entropy = -ops.sum(meant * ops.log_softmax(said, axis=-1))
    # Without tumour both are 0.
    return outline(truth[..., :-types], logits[..., :-types]) + TYPE_SHARE * entropy / ops.maximum(
        ops.sum(meant), 1.0
    )


def _probabilities(activation: Activation, logits: Tensor) -> Tensor:
    return ops.sigmoid(logits) if activation == "sigmoid" else ops.softmax(logits, axis=-1)


def _overlapping(activation: Activation, truth: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Masks and probabilities of what overlaps: all regions, or all labels but the background."""
    answers = _probabilities(activation, logits)
    return (truth, answers) if activation == "sigmoid" else (truth[..., 1:], answers[..., 1:])


def _axes(over: Over, masks: Tensor) -> tuple[int, ...]:
    """Axes that an overlap is summed over: the grid's, and all tiles unless each stands alone.

    Over the whole batch, one tile without tumour does not count as an error of 1 (nnU-Net's ``batch_dice``).
    """
    return tuple(range(1 if over == "tile" else 0, len(masks.shape) - 1))


def _sums(loss: Loss, activation: Activation, truth: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Volumes of intersection, truth and answer, per region and per tile or batch."""
    masks, answers = _overlapping(activation, truth, logits)
    axes = _axes(loss.over, masks)
    return ops.sum(masks * answers, axis=axes), ops.sum(masks, axis=axes), ops.sum(answers, axis=axes)


def _dices(loss: Loss, activation: Activation, truth: Tensor, logits: Tensor) -> Tensor:
    shared, masks, answers = _sums(loss, activation, truth, logits)
    return (2.0 * shared + SMOOTH) / (masks + answers + SMOOTH)


def _tverskys(loss: Loss, activation: Activation, truth: Tensor, logits: Tensor) -> Tensor:
    shared, masks, answers = _sums(loss, activation, truth, logits)
    false_positive, false_negative = answers - shared, masks - shared
    return (shared + SMOOTH) / (shared + 0.3 * false_positive + 0.7 * false_negative + SMOOTH)


def _entropy(activation: Activation, truth: Tensor, logits: Tensor) -> Tensor:
    """Cross-entropy of every voxel, and of every region where they are independent."""
    if activation == "sigmoid":
        # max(x, 0) - x y + log(1 + exp(-|x|)): it never takes the logarithm of 0.
        return ops.relu(logits) - logits * truth + ops.softplus(-ops.abs(logits))
    return -ops.sum(truth * ops.log_softmax(logits, axis=-1), axis=-1)
