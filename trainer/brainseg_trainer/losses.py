"""What training minimises: on logits, in float32, region by region."""

import keras
from keras import ops

from brainseg_trainer.config import Loss

__all__ = ["SMOOTH", "dice_bce", "loss_of"]

SMOOTH = 1e-5
"""Added to both sides of Dice's fraction: a region absent from truth and answer agrees, at no gradient."""


def dice_bce(masks: keras.KerasTensor, logits: keras.KerasTensor) -> keras.KerasTensor:
    """Soft Dice plus binary cross-entropy, the mean over regions: two (N, i, j, k, R) -> scalar.

    Dice is taken over the whole batch, so that one tile without tumour does not count as an error of 1
    (nnU-Net's ``batch_dice``); each region counts the same however small it is.
    """
    masks = ops.cast(masks, "float32")
    logits = ops.cast(logits, "float32")
    everywhere = (0, 1, 2, 3)
    probabilities = ops.sigmoid(logits)
    shared = ops.sum(probabilities * masks, axis=everywhere)
    total = ops.sum(probabilities, axis=everywhere) + ops.sum(masks, axis=everywhere)
    dice = (2.0 * shared + SMOOTH) / (total + SMOOTH)
    # max(x, 0) - x y + log(1 + exp(-|x|)): cross-entropy that never takes the logarithm of 0.
    entropy = ops.relu(logits) - logits * masks + ops.softplus(-ops.abs(logits))
    return ops.mean(1.0 - dice) + ops.mean(entropy)


def loss_of(loss: Loss, activation: str) -> object:
    """Stub."""
    return dice_bce
