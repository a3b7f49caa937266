"""``unet3d``: the 3-D U-Net of Cicek et al. 2016 in the form that ellisdg/3DUnetCNN made common.

In every level the second convolution doubles the filters; maximum pooling on the way down, transposed
convolutions that keep the filters on the way up, as in its BraTS example; ReLU.
"""

import keras
from keras import layers

from brainseg_trainer.config import Network
from brainseg_trainer.networks.blocks import finished, level, pointwise, relu, upsampled

__all__ = ["build", "divisor"]


def divisor(network: Network) -> tuple[int, int, int]:
    """What the sides of the input must be multiples of: every level but the first halves."""
    return (2 ** (network.depth - 1),) * 3


def build(network: Network, channels: int, outputs: int, types: int) -> keras.Model:
    """``width`` filters in the first convolution, twice as many on each further one of ``depth`` levels."""
    image = keras.Input((None, None, None, channels), name="image")
    x = image
    skips = []
    for n in range(network.depth):
        if n:
            x = layers.MaxPooling3D(2, name=f"pool{n}")(x)
        filters = network.width * 2**n
        x = level(x, (filters, 2 * filters), f"down{n}", network, activation=relu)
        skips.append(x)
    bottleneck = x
    decoded: list[keras.KerasTensor] = []
    for n in reversed(range(network.depth - 1)):
        x = upsampled(x, x.shape[-1], f"up{n}", network)
        x = layers.Concatenate(name=f"up{n}_skip")([x, skips[n]])
        filters = network.width * 2 ** (n + 1)
        x = level(x, (filters, filters), f"up{n}", network, activation=relu)
        decoded.insert(0, x)
    return finished(
        image, pointwise(decoded[0]), decoded, bottleneck, network, outputs, types, divisor(network)
    )
