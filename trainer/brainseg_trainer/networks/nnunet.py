"""``nnunet``: nnU-Net's plain U-Net at full resolution (Isensee et al. 2021), as it won BraTS 2020."""

import keras
from keras import layers

from brainseg_trainer.config import Network
from brainseg_trainer.networks.blocks import WIDEST, finished, plain

__all__ = ["build", "divisor"]


def divisor(network: Network) -> tuple[int, int, int]:
    """What the sides of the input must be multiples of: every level but the first halves."""
    return (2 ** (network.depth - 1),) * 3


def build(network: Network, channels: int, outputs: int, types: int) -> keras.Model:
    """``width`` filters on the first of ``depth`` levels, twice as many on each further one up to 320."""
    image = keras.Input((None, None, None, channels), name="image")
    widths = [min(network.width * 2**n, WIDEST) for n in range(network.depth)]
    decoded, bottleneck = plain(image, widths, network)

    def head(filters: int, name: str) -> keras.KerasTensor:
        # float32 whatever the policy: an overflow here would be an answer.
        return layers.Conv3D(filters, 1, dtype="float32", name=name)(decoded[0])

    return finished(image, head, decoded, bottleneck, network, outputs, types, divisor(network))
