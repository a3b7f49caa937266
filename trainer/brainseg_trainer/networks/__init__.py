"""The networks, one preset a file, all of Keras' own layers, so that a saved one loads without brainseg."""

from pathlib import Path

import keras
from brainseg_runtime.errors import OutputUnwritable, UsageRefused

from brainseg_trainer.config import Network
from brainseg_trainer.networks import s2d, unet3d

__all__ = ["build_network", "deployed", "divisor", "load_network", "save_network"]


def build_network(network: Network, channels: int, outputs: int) -> keras.Model:
    """A Keras model (N, i, j, k, channels) -> logits (N, i, j, k, outputs), any multiple of the divisor."""
    match network.preset:
        case "s2d":
            return s2d.build(channels, outputs, network.width, network.depth)
        case "unet3d":
            return unet3d.build(channels, outputs, network.width, network.depth)
        case _:
            raise _unbuilt(network)


def deployed(network: keras.Model) -> keras.Model:
    """The network without its auxiliary heads."""
    return keras.Model(network.input, network.outputs[0])


def divisor(network: Network) -> tuple[int, int, int]:
    """What each side of the network's input must be a multiple of, in voxels."""
    match network.preset:
        case "s2d":
            return (s2d.divisor(network.depth),) * 3
        case "unet3d":
            return (unet3d.divisor(network.depth),) * 3
        case "unet2d":
            return (2 ** (network.depth - 1), 2 ** (network.depth - 1), 1)
        case _:
            raise _unbuilt(network)


def _unbuilt(network: Network) -> UsageRefused:
    return UsageRefused("E_USAGE", f"{network.preset} is not built yet.", "Take s2d or unet3d.")


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
    return keras.saving.load_model(path, compile=False)
