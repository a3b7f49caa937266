"""The pieces that the presets share, each a few plain Keras layers."""

from collections.abc import Callable, Sequence

import keras
from keras import layers

from brainseg_trainer.config import Network

__all__ = [
    "WIDEST",
    "Activation",
    "convolution",
    "finished",
    "leaky_relu",
    "level",
    "normalised",
    "plain",
    "pointwise",
    "relu",
    "upsampled",
]

Activation = Callable[[str], keras.Layer]
"""Makes an activation layer of a given name."""
Kernel = tuple[int, int, int]
CUBE: Kernel = (3, 3, 3)

WIDEST = 320
"""Filters that no level of nnU-Net exceeds."""


def leaky_relu(name: str) -> keras.Layer:
    """LeakyReLU of slope 0.01, as in nnU-Net; Keras' own default is 0.3."""
    return layers.LeakyReLU(negative_slope=0.01, name=name)


def relu(name: str) -> keras.Layer:
    """Plain ReLU."""
    return layers.ReLU(name=name)


def normalised(
    x: keras.KerasTensor, name: str, network: Network, activation: Activation = leaky_relu
) -> keras.KerasTensor:
    """The network's norm, then an activation; the shape stays."""
    if network.norm == "instance":
        # One group per channel; the epsilon is nnU-Net's.
        x = layers.GroupNormalization(groups=-1, epsilon=1e-5, name=f"{name}_norm")(x)
    else:
        x = layers.BatchNormalization(name=f"{name}_norm")(x)
    return activation(f"{name}_act")(x)


def convolution(
    x: keras.KerasTensor,
    filters: int,
    name: str,
    *,
    kernel: Kernel = CUBE,
    stride: int = 1,
) -> keras.KerasTensor:
    """A convolution without bias: (N, i, j, k, C) -> (N, i/s, j/s, k/s, filters)."""
    padding = "same"
    if stride > 1:
        # "same" would pad a strided convolution at one end only, and only in TensorFlow.
        x = layers.ZeroPadding3D(tuple(n // 2 for n in kernel), name=f"{name}_pad")(x)
        padding = "valid"
    return layers.Conv3D(
        filters,
        kernel,
        strides=stride,
        padding=padding,
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{name}_conv",
    )(x)


def level(
    x: keras.KerasTensor,
    filters: tuple[int, int],
    name: str,
    network: Network,
    *,
    kernels: tuple[Kernel, Kernel] = (CUBE, CUBE),
    stride: int = 1,
    activation: Activation = leaky_relu,
) -> keras.KerasTensor:
    """Two convolutions, each with norm and activation, dropout between them; the first may halve the grid."""
    x = convolution(x, filters[0], f"{name}a", kernel=kernels[0], stride=stride)
    x = normalised(x, f"{name}a", network, activation)
    if network.dropout:
        x = layers.SpatialDropout3D(network.dropout, name=f"{name}_dropout")(x)
    x = convolution(x, filters[1], f"{name}b", kernel=kernels[1])
    return normalised(x, f"{name}b", network, activation)


def upsampled(
    x: keras.KerasTensor,
    filters: int,
    name: str,
    network: Network,
    *,
    factor: tuple[int, int, int] = (2, 2, 2),
) -> keras.KerasTensor:
    """A finer grid: (N, i, j, k, C) -> (N, 2i, 2j, 2k, filters), or as many times finer as ``factor`` says.

    By a transposed convolution, or by nearest neighbours and a 3x3x3 convolution (Isensee et al. 2017).
    """
    if network.upsampling == "transposed":
        return layers.Conv3DTranspose(filters, factor, strides=factor, name=name)(x)
    x = layers.UpSampling3D(factor, name=name)(x)
    kernel = tuple(3 if n > 1 else 1 for n in factor)
    return layers.Conv3D(
        filters, kernel, padding="same", kernel_initializer="he_normal", name=f"{name}_conv"
    )(x)


def plain(
    x: keras.KerasTensor, widths: Sequence[int], network: Network
) -> tuple[list[keras.KerasTensor], keras.KerasTensor]:
    """nnU-Net's plain U-Net (Isensee et al. 2021): the features of every decoder level, and the bottleneck's.

    ``widths``: filters per level, finest first. Strided convolutions lead down.
    """
    skips = []
    for n, filters in enumerate(widths):
        x = level(x, (filters, filters), f"down{n}", network, stride=2 if n else 1)
        skips.append(x)
    bottleneck = x
    decoded: list[keras.KerasTensor] = []
    for n, filters in reversed(list(enumerate(widths[:-1]))):
        x = upsampled(x, filters, f"up{n}", network)
        x = layers.Concatenate(name=f"up{n}_skip")([x, skips[n]])
        x = level(x, (filters, filters), f"up{n}", network)
        decoded.insert(0, x)
    return decoded, bottleneck


def pointwise(x: keras.KerasTensor) -> Callable[[int, str], keras.KerasTensor]:
    """A head of one convolution of a single voxel: makes logits of so many channels, under a name."""

    def head(filters: int, name: str) -> keras.KerasTensor:
        # float32 whatever the policy: an overflow here would be an answer.
        return layers.Conv3D(filters, 1, dtype="float32", name=name)(x)

    return head


def finished(
    image: keras.KerasTensor,
    head: Callable[[int, str], keras.KerasTensor],
    decoded: Sequence[keras.KerasTensor],
    bottleneck: keras.KerasTensor,
    network: Network,
    outputs: int,
    types: int,
    coarsest: tuple[int, int, int],
) -> keras.Model:
    """The network with its heads: see ``build_network`` for its outputs.

    ``head`` makes the logits, with so many channels and under a name;
    ``coarsest`` is how many voxels the bottleneck's grid has one for, per axis.
    """
    logits = head(outputs, "regions" if types else "logits")
    answers = [_with_types(logits, bottleneck, types, coarsest)]
    answers += [pointwise(decoded[n])(outputs, f"auxiliary{n}") for n in range(1, network.auxiliary + 1)]
    return keras.Model(image, answers, name=network.preset)


def _with_types(
    logits: keras.KerasTensor, bottleneck: keras.KerasTensor, types: int, coarsest: tuple[int, int, int]
) -> keras.KerasTensor:
    """Region logits, and after them those of the type that each place on the bottleneck's grid speaks for."""
    if not types:
        return logits
    said = layers.Conv3D(types, 1, dtype="float32", name="types")(bottleneck)
    said = layers.UpSampling3D(coarsest, dtype="float32", name="types_fine")(said)
    return layers.Concatenate(dtype="float32", name="logits")([logits, said])
