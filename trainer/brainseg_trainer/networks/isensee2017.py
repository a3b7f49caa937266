"""``isensee2017``: Isensee et al. 2017 (arXiv 1802.10508), with the paper's values.

Context modules on the way down are pre-activation residual blocks of two convolutions with dropout between
them; up-sampling by nearest neighbours and a convolution; localisation modules on the way up. Segmentation
layers on the three finest levels are added up, coarse to fine, which supervises them all by one loss.
"""

from collections.abc import Sequence

import keras
from keras import layers

from brainseg_trainer.config import Network
from brainseg_trainer.networks.blocks import convolution, finished, normalised, upsampled

__all__ = ["build", "divisor"]

SEGMENTED = 3
"""Finest levels with a segmentation layer."""


def divisor(network: Network) -> tuple[int, int, int]:
    """What the sides of the input must be multiples of: every level but the first halves."""
    return (2 ** (network.depth - 1),) * 3


def build(network: Network, channels: int, outputs: int, types: int) -> keras.Model:
    """``width`` filters on the first of ``depth`` levels, twice as many on each further one."""
    widths = [network.width * 2**n for n in range(network.depth)]
    image = keras.Input((None, None, None, channels), name="image")
    x = image
    skips = []
    for n, filters in enumerate(widths):
        x = convolution(x, filters, f"down{n}", stride=2 if n else 1)
        x = layers.Add(name=f"context{n}")([x, _context(x, filters, f"context{n}", network)])
        x = normalised(x, f"context{n}", network)
        skips.append(x)
    bottleneck = x
    decoded: list[keras.KerasTensor] = []
    for n, filters in reversed(list(enumerate(widths[:-1]))):
        x = normalised(upsampled(x, filters, f"up{n}", network), f"up{n}", network)
        x = layers.Concatenate(name=f"up{n}_skip")([x, skips[n]])
        # The paper's last convolution keeps both halves of what it is given.
        x = _localised(x, filters, f"local{n}", network) if n else _last(x, 2 * filters, network)
        decoded.insert(0, x)

    def head(filters: int, name: str) -> keras.KerasTensor:
        return _summed(decoded[:SEGMENTED], filters, name)

    return finished(image, head, decoded, bottleneck, network, outputs, types, divisor(network))


def _context(x: keras.KerasTensor, filters: int, name: str, network: Network) -> keras.KerasTensor:
    x = convolution(normalised(x, f"{name}a", network), filters, f"{name}a")
    if network.dropout:
        x = layers.SpatialDropout3D(network.dropout, name=f"{name}_dropout")(x)
    return convolution(normalised(x, f"{name}b", network), filters, f"{name}b")


def _localised(x: keras.KerasTensor, filters: int, name: str, network: Network) -> keras.KerasTensor:
    x = normalised(convolution(x, filters, f"{name}a"), f"{name}a", network)
    return normalised(convolution(x, filters // 2, f"{name}b", kernel=(1, 1, 1)), f"{name}b", network)


def _last(x: keras.KerasTensor, filters: int, network: Network) -> keras.KerasTensor:
    return normalised(convolution(x, filters, "last"), "last", network)


def _summed(finest: Sequence[keras.KerasTensor], filters: int, name: str) -> keras.KerasTensor:
    """Segmentation layers of so many levels, each brought to the next finer grid and added to its own."""
    total = None
    for n, features in reversed(list(enumerate(finest))):
        # float32 whatever the policy: an overflow here would be an answer.
        own = layers.Conv3D(filters, 1, dtype="float32", name=name if len(finest) == 1 else f"segmented{n}")(
            features
        )
        if total is not None:
            finer = layers.UpSampling3D(2, dtype="float32", name=f"segmented{n}_fine")(total)
            own = layers.Add(dtype="float32", name=f"segmented{n}_sum" if n else name)([own, finer])
        total = own
    return total
