"""``unet3d``: the 3-D U-Net of Cicek et al. 2016 in the form that ellisdg/3DUnetCNN made common.

In every level the second convolution doubles the filters; maximum pooling on the way down, transposed
convolutions that keep the filters on the way up, as in its BraTS example; ReLU.
"""

import keras
from keras import layers

from brainseg_trainer.networks.blocks import convolution, relu

__all__ = ["build", "divisor"]


def divisor(depth: int) -> int:
    """What the sides of the input must be multiples of: every level but the first halves."""
    return int(2 ** (depth - 1))


def build(channels: int, outputs: int, width: int, depth: int) -> keras.Model:
    """The network: (N, i, j, k, channels) -> logits (N, i, j, k, outputs).

    ``width`` filters in the first convolution, twice as many on each further one of ``depth`` levels.
    """
    image = keras.Input((None, None, None, channels), name="image")
    x = image
    skips = []
    for level in range(depth):
        if level:
            x = layers.MaxPooling3D(2, name=f"pool{level}")(x)
        x = convolution(x, width * 2**level, f"down{level}a", activation=relu)
        x = convolution(x, width * 2 ** (level + 1), f"down{level}b", activation=relu)
        skips.append(x)
    for level in reversed(range(depth - 1)):
        x = layers.Conv3DTranspose(x.shape[-1], 2, strides=2, name=f"up{level}")(x)
        x = layers.Concatenate(name=f"up{level}_skip")([x, skips[level]])
        x = convolution(x, width * 2 ** (level + 1), f"up{level}a", activation=relu)
        x = convolution(x, width * 2 ** (level + 1), f"up{level}b", activation=relu)
    # float32 whatever the policy: an overflow here would be an answer.
    logits = layers.Conv3D(outputs, 1, dtype="float32", name="logits")(x)
    return keras.Model(image, logits, name="unet3d")
