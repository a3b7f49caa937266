"""``nnunet``: nnU-Net's plain U-Net at full resolution (Isensee et al. 2021), as it won BraTS 2020."""

import keras

from brainseg_trainer.config import Network
from brainseg_trainer.networks.blocks import WIDEST, finished, plain, pointwise

__all__ = ["build", "divisor"]


def divisor(network: Network) -> tuple[int, int, int]:
    """What the sides of the input must be multiples of: every level but the first halves."""
    return (2 ** (network.depth - 1),) * 3


def build(network: Network, channels: int, outputs: int, types: int) -> keras.Model:
    """``width`` filters on the first of ``depth`` levels, twice as many on each further one up to 320."""
    image = keras.Input((None, None, None, channels), name="image")
    widths = [min(network.width * 2**n, WIDEST) for n in range(network.depth)]
    decoded, bottleneck = plain(image, widths, network)
    return finished(
        image, pointwise(decoded[0]), decoded, bottleneck, network, outputs, types, divisor(network)
    )
