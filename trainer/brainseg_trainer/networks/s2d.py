"""``s2d``: a U-Net at half resolution that loses no voxel, because they come and go as channels.

nnU-Net's plain U-Net (Isensee et al. 2021) between a convolution of kernel 2 and stride 2, which can express
space-to-depth, and its transpose, which can express depth-to-space.
"""

import keras
from keras import layers

from brainseg_trainer.networks.blocks import convolution

__all__ = ["build", "divisor"]

WIDEST = 320
"""Filters that no level exceeds."""
STEM = 32
"""Filters that hold 2x2x2 voxels of four modalities without loss."""


def divisor(depth: int) -> int:
    """What the sides of the input must be multiples of: the stem halves, and every level but the first."""
    return int(2**depth)


def build(channels: int, outputs: int, width: int, depth: int) -> keras.Model:
    """The network: (N, i, j, k, channels) -> logits (N, i, j, k, outputs).

    ``width`` filters on the first of ``depth`` levels, twice as many on each further one up to 320.
    """
    widths = [min(width * 2**level, WIDEST) for level in range(depth)]
    image = keras.Input((None, None, None, channels), name="image")
    x = layers.Conv3D(max(STEM, width), 2, strides=2, name="stem")(image)
    skips = []
    for level, filters in enumerate(widths):
        x = convolution(x, filters, f"down{level}a", stride=2 if level else 1)
        x = convolution(x, filters, f"down{level}b")
        skips.append(x)
    for level, filters in reversed(list(enumerate(widths[:-1]))):
        x = layers.Conv3DTranspose(filters, 2, strides=2, name=f"up{level}")(x)
        x = layers.Concatenate(name=f"up{level}_skip")([x, skips[level]])
        x = convolution(x, filters, f"up{level}a")
        x = convolution(x, filters, f"up{level}b")
    # float32 whatever the policy: an overflow here would be an answer.
    logits = layers.Conv3DTranspose(outputs, 2, strides=2, dtype="float32", name="logits")(x)
    return keras.Model(image, logits, name="s2d")
