"""The networks, one preset a file, all of Keras' own layers, so that a saved one loads without brainseg."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import keras
from brainseg_runtime.errors import OutputUnwritable, UsageRefused

from brainseg_trainer.config import Network
from brainseg_trainer.networks import isensee2017, nnunet, s2d, unet2d, unet3d

__all__ = ["build_network", "deployed", "divisor", "load_network", "save_network"]


class _Preset(NamedTuple):
    build: Callable[[Network, int, int, int], keras.Model]
    """Network, channels, outputs, types -> the model."""
    divisor: Callable[[Network], tuple[int, int, int]]


PRESETS: Mapping[str, _Preset] = {
    name: _Preset(preset.build, preset.divisor)
    for name, preset in {
        "s2d": s2d,
        "unet3d": unet3d,
        "isensee2017": isensee2017,
        "nnunet": nnunet,
        "unet2d": unet2d,
    }.items()
}


def build_network(network: Network, channels: int, outputs: int, types: int = 0) -> keras.Model:
    """A Keras model (N, i, j, k, channels) -> logits (N, i, j, k, outputs + types).

    Any grid that is a multiple of the divisor goes in. Auxiliary heads are further outputs: the regions'
    logits on coarser grids, finest first.
    """
    return PRESETS[network.preset].build(network, channels, outputs, types)


def deployed(network: keras.Model) -> keras.Model:
    """The network without its auxiliary heads, sharing all else."""
    return keras.Model(network.input, network.outputs[0], name=network.name)


def divisor(network: Network) -> tuple[int, int, int]:
    """What each side (i, j, k) of the network's input must be a multiple of, in voxels."""
    return PRESETS[network.preset].divisor(network)


def save_network(network: keras.Model, path: Path) -> None:
    """Save a network, whole or not at all.

    Raises:
        OutputUnwritable: ``E_OUTPUT``.
    """
    partial = path.with_name(f".partial-{path.name}")
    try:
        network.save(partial)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputUnwritable(
            "E_OUTPUT", f"{path} cannot be written: {error}.", "Free some space, then --resume."
        ) from error


def load_network(path: Path) -> keras.Model:
    """The network of a finished run.

    Raises:
        UsageRefused: ``E_RUN`` where there is none.
    """
    if not path.exists():
        raise UsageRefused("E_RUN", f"there is no {path}.", "Finish the run with --resume.")
    return keras.saving.load_model(path, compile=False, safe_mode=True)
