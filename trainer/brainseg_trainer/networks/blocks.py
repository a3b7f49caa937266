"""The pieces that the presets share, each a few plain Keras layers."""

from collections.abc import Callable

import keras
from keras import layers

__all__ = ["Activation", "convolution", "leaky_relu", "relu"]

Activation = Callable[[str], keras.Layer]
"""Makes an activation layer of a given name."""


def leaky_relu(name: str) -> keras.Layer:
    """LeakyReLU of slope 0.01, as in nnU-Net; Keras' own default is 0.3."""
    return layers.LeakyReLU(negative_slope=0.01, name=name)


def relu(name: str) -> keras.Layer:
    """Plain ReLU."""
    return layers.ReLU(name=name)


def convolution(
    x: keras.KerasTensor, filters: int, name: str, *, stride: int = 1, activation: Activation = leaky_relu
) -> keras.KerasTensor:
    """3x3x3 convolution, batch norm, activation: (N, i, j, k, C) -> (N, i/s, j/s, k/s, filters)."""
    padding = "same"
    if stride > 1:
        # "same" would pad a strided convolution at one end only, and only in TensorFlow.
        x = layers.ZeroPadding3D(1, name=f"{name}_pad")(x)
        padding = "valid"
    x = layers.Conv3D(
        filters,
        3,
        strides=stride,
        padding=padding,
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{name}_conv",
    )(x)
    x = layers.BatchNormalization(name=f"{name}_norm")(x)
    return activation(f"{name}_act")(x)
