"""``s2d``: a U-Net at half resolution that loses no voxel, because they come and go as channels.

nnU-Net's plain U-Net (Isensee et al. 2021) between a convolution of kernel 2 and stride 2, which can express
space-to-depth, and its transpose, which can express depth-to-space.
"""

import keras
from keras import layers

from brainseg_trainer.config import Network
from brainseg_trainer.networks.blocks import WIDEST, finished, plain

__all__ = ["build", "divisor"]

STEM = 32
"""Filters that hold 2x2x2 voxels of four modalities without loss."""


def divisor(network: Network) -> tuple[int, int, int]:
    """What the sides of the input must be multiples of: the stem halves, and every level but the first."""
    return (2**network.depth,) * 3


def build(network: Network, channels: int, outputs: int, types: int) -> keras.Model:
    """``width`` filters on the first of ``depth`` levels, twice as many on each further one up to 320."""
    image = keras.Input((None, None, None, channels), name="image")
    x = layers.Conv3D(max(STEM, network.width), 2, strides=2, name="stem")(image)
    widths = [min(network.width * 2**n, WIDEST) for n in range(network.depth)]
    decoded, bottleneck = plain(x, widths, network)

    def head(filters: int, name: str) -> keras.KerasTensor:
        # float32 whatever the policy: an overflow here would be an answer.
        return layers.Conv3DTranspose(filters, 2, strides=2, dtype="float32", name=name)(decoded[0])

    return finished(image, head, decoded, bottleneck, network, outputs, types, divisor(network))
