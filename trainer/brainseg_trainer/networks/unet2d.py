"""``unet2d``: the U-Net of Ronneberger et al. 2015 for slices, each alone or with its neighbours (2.5D).

It is written with 3-D layers whose kernels are one slice thick, so that volumes, tiles, export and runtime
stay as they are. In 2.5D the first kernel is as thick as the slices that an answer is made from, which is the
same as giving a 2-D network the neighbours as channels; beyond the last slice is background 0.
Convolutions are padded and normalised, unlike the paper's.
"""

import keras
from keras import layers

from brainseg_trainer.config import Network
from brainseg_trainer.networks.blocks import finished, level, pointwise, relu, upsampled

__all__ = ["build", "divisor"]

FLAT = (3, 3, 1)
"""A kernel of one slice."""
HALF = (2, 2, 1)
"""Strides that leave slices alone."""


def divisor(network: Network) -> tuple[int, int, int]:
    """What the sides of the input must be multiples of: every level but the first halves a slice's sides."""
    side = 2 ** (network.depth - 1)
    return side, side, 1


def build(network: Network, channels: int, outputs: int, types: int) -> keras.Model:
    """``width`` filters on the first of ``depth`` levels, twice as many on each further one."""
    image = keras.Input((None, None, None, channels), name="image")
    x = image
    skips = []
    for n in range(network.depth):
        if n:
            x = layers.MaxPooling3D(HALF, name=f"pool{n}")(x)
        filters = network.width * 2**n
        kernels = (FLAT if n else (3, 3, network.slices), FLAT)
        x = level(x, (filters, filters), f"down{n}", network, kernels=kernels, activation=relu)
        skips.append(x)
    bottleneck = x
    decoded: list[keras.KerasTensor] = []
    for n in reversed(range(network.depth - 1)):
        filters = network.width * 2**n
        x = upsampled(x, filters, f"up{n}", network, factor=HALF)
        x = layers.Concatenate(name=f"up{n}_skip")([x, skips[n]])
        x = level(x, (filters, filters), f"up{n}", network, kernels=(FLAT, FLAT), activation=relu)
        decoded.insert(0, x)
    return finished(
        image, pointwise(decoded[0]), decoded, bottleneck, network, outputs, types, divisor(network)
    )
