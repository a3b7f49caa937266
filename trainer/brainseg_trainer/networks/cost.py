"""What a network costs: parameters, multiplications, and memory before any of it is spent."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import keras
import numpy as np
from brainseg_runtime.errors import BudgetExceeded, UsageRefused
from brainseg_runtime.memory import MEGABYTE, machine_memory

from brainseg_trainer.config import TrainConfig
from brainseg_trainer.networks import build_network, divisor

__all__ = ["Cost", "cost_of", "require_room"]

PROCESS = 700 * MEGABYTE
"""Python with Keras and TensorFlow, before a network is built. Measured."""
KEPT = 1.5
"""Bytes that a step holds, relative to what all layers put out. Measured: 1.2 to 1.5 with norms."""
COPIES = 5
"""Of the weights: themselves, their gradient, the optimiser's two means, the mean that is scored."""


@dataclass(frozen=True)
class Cost:
    """Of one network on tiles of one size."""

    parameters: int
    multiplications: int
    """Of the convolutions, for one tile."""
    training_bytes: int
    """About what a process holds at most during a step."""
    inference_bytes: int
    """Of the activations that are alive at once, for one tile."""


def cost_of(config: TrainConfig) -> Cost:
    """The cost of a configuration's network on its tiles, from the network's own graph."""
    task, training = config.task, config.training
    # As many as BraTS' task has; another task's head hardly counts.
    outputs = 4 if task.activation == "softmax" else 3
    network = build_network(config.network, len(task.modalities), outputs)
    shapes = _shapes(network, config.data.tile)
    sizes = {name: 4 * int(np.prod(shape[1:])) for name, shape in shapes.items()}
    parameters = int(network.count_params())
    return Cost(
        parameters=parameters,
        multiplications=sum(_multiplications(layer, shapes) for layer in network.layers),
        training_bytes=int(PROCESS + COPIES * 4 * parameters + training.batch * KEPT * sum(sizes.values())),
        inference_bytes=_alive(network, sizes),
    )


def require_room(config: TrainConfig) -> None:
    """Check, before a run begins, that its network can be trained on its tiles and on this machine.

    Raises:
        BudgetExceeded: ``E_MEMORY``, naming a batch, tile or width that would fit.
        UsageRefused: ``E_NETWORK`` for instance norm where only one voxel is left to norm.
    """
    side = divisor(config.network)
    if config.network.norm == "instance" and config.data.tile == side:
        raise UsageRefused(
            "E_NETWORK",
            f"a tile of {config.data.tile} leaves one voxel on the coarsest level, which has no deviation.",
            f"Make data.tile larger than {side}, network.depth smaller, or network.norm batch.",
        )
    limit, needed = machine_memory(), cost_of(config).training_bytes
    if needed > limit:
        smaller = next((c for c in _smaller(config) if cost_of(c).training_bytes <= limit), None)
        raise BudgetExceeded(
            "E_MEMORY",
            f"a step of {config.network.preset} on {config.training.batch} tiles of {config.data.tile} takes "
            f"about {needed / 1e9:.1f} GB, the machine has {limit / 1e9:.1f} GB.",
            f"This would fit: {_in_words(smaller)}." if smaller else "Take another preset.",
        )


def _shapes(network: keras.Model, tile: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
    """Layer -> the shape of what it puts out for one tile."""
    outputs = [layer.output for layer in network.layers]
    whole = keras.Model(network.inputs, outputs)
    found = whole.compute_output_shape((1, *tile, network.inputs[0].shape[-1]))
    return {layer.name: tuple(shape) for layer, shape in zip(network.layers, found, strict=True)}


def _multiplications(layer: keras.Layer, shapes: dict[str, tuple[int, ...]]) -> int:
    if isinstance(layer, keras.layers.Conv3DTranspose):
        # Each voxel of the input meets the whole kernel.
        grid = shapes[_parents(layer)[0]]
    elif isinstance(layer, keras.layers.Conv3D):
        grid = shapes[layer.name]
    else:
        return 0
    return int(np.prod(grid[1:4])) * int(np.prod(layer.kernel.shape))


IN_PLACE = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LeakyReLU,
    keras.layers.ReLU,
    keras.layers.SpatialDropout3D,
    keras.layers.ZeroPadding3D,
)
"""What a runtime computes where its input lies, or with the layer before."""


def _alive(network: keras.Model, sizes: dict[str, int]) -> int:
    """The most bytes that are alive at once, layer after layer."""
    held: dict[str, str] = {}
    last: dict[str, int] = {}
    for n, layer in enumerate(network.layers):
        parents = [held[name] for name in _parents(layer)]
        held[layer.name] = parents[0] if isinstance(layer, IN_PLACE) else layer.name
        last.update(dict.fromkeys([*parents, held[layer.name]], n))
    alive: dict[str, int] = {}
    most = 0
    for n, layer in enumerate(network.layers):
        owner = held[layer.name]
        alive[owner] = sizes[owner]
        most = max(most, sum(alive.values()))
        alive = {name: size for name, size in alive.items() if last[name] > n}
    return most


def _parents(layer: keras.Layer) -> list[str]:
    """The layers that a layer reads from."""
    if isinstance(layer, keras.layers.InputLayer):
        return []
    inputs = layer.input if isinstance(layer.input, list) else [layer.input]
    return [tensor._keras_history.operation.name for tensor in inputs]


def _smaller(config: TrainConfig) -> Iterator[TrainConfig]:
    """Ever smaller configurations: fewer tiles a step, then smaller tiles, then a narrower network."""
    batch, width = config.training.batch, config.network.width
    while batch > 1:
        batch //= 2
        yield replace(config, training=replace(config.training, batch=batch))
    one = replace(config, training=replace(config.training, batch=1))
    sides = divisor(config.network)
    tile = one.data.tile
    while any(n > d for n, d in zip(tile, sides, strict=True)):
        i, j, k = (max(d, n // 2 // d * d) for n, d in zip(tile, sides, strict=True))
        tile = i, j, k
        yield replace(one, data=replace(one.data, tile=tile))
    while width > 1:
        width //= 2
        yield replace(one, data=replace(one.data, tile=tile), network=replace(config.network, width=width))


def _in_words(config: TrainConfig) -> str:
    return (
        f"training.batch = {config.training.batch}, data.tile = {list(config.data.tile)}, "
        f"network.width = {config.network.width}"
    )
