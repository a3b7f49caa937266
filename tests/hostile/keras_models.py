"""Keras files that want to do something while they load; the marker is what they would leave behind."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import keras
import numpy as np
from keras import layers

__all__ = ["HOSTILE"]


def good() -> keras.Model:
    """One layer."""
    return keras.Sequential([keras.Input((8, 8, 8, 4)), layers.Conv3D(3, 1, name="head")])


def archive(path: Path, model: keras.Model | None = None) -> dict[str, bytes]:
    """The members of a model's file."""
    (model or good()).save(path)
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


def put(path: Path, members: dict[str, bytes]) -> Path:
    """A file of those members."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def with_layer(folder: Path, layer: dict[str, object]) -> Path:
    """A model whose layer is described by something else."""
    members = archive(folder / "model.keras")
    config = json.loads(members["config.json"])
    entry = next(e for e in config["config"]["layers"] if e["config"].get("name") == "head")
    config["config"]["layers"][config["config"]["layers"].index(entry)] = layer
    return put(folder / "model.keras", {**members, "config.json": json.dumps(config).encode()})


def code(folder: Path, marker: Path) -> Path:
    """Python in a Lambda layer."""
    evil = layers.Lambda(lambda x, place=str(marker): (__import__("pathlib").Path(place).touch(), x)[1])
    keras.Sequential([keras.Input((8, 8, 8, 4)), evil]).save(folder / "model.keras")
    return folder / "model.keras"


def function(module: str, name: str) -> Callable[[Path, Path], Path]:
    """A function of Python named as a layer, called with words of the file's choosing."""

    def make(folder: Path, marker: Path) -> Path:
        layer = {
            "module": module,
            "class_name": name,
            "config": f"open({str(marker)!r}, 'w')",
            "registered_name": name,
        }
        return with_layer(folder, layer)

    return make


def activation(folder: Path, marker: Path) -> Path:
    """A function of the system as an activation."""
    layer = {
        "module": "keras.layers",
        "class_name": "Conv3D",
        "registered_name": None,
        "config": {
            "name": "head",
            "filters": 3,
            "kernel_size": 1,
            "activation": {"module": "os", "class_name": "function", "config": "system"},
        },
    }
    return with_layer(folder, layer)


def climbs(folder: Path, marker: Path) -> Path:
    """A member that would be unpacked above the file, in place of the weights."""
    members = archive(folder / "model.keras")
    del members["model.weights.h5"]
    return put(folder / "model.keras", {**members, f"../{marker.name}": b"x"})


def outside(folder: Path, marker: Path) -> Path:
    """Weights that HDF5 is to read from another file of the machine."""
    members = archive(folder / "model.keras")
    secret = folder / "secret.bin"
    secret.write_bytes(np.zeros(3, "f4").tobytes())
    weights = io.BytesIO(members["model.weights.h5"])
    with h5py.File(weights, "r+") as file:
        place = next(n for n in _datasets(file) if file[n].shape == (3,))
        del file[place]
        file.create_dataset(place, (3,), "f4", external=[(str(secret), 0, 12)])
    return put(folder / "model.keras", {**members, "model.weights.h5": weights.getvalue()})


def linked(folder: Path, marker: Path) -> Path:
    """Weights that are a link into another HDF5 file."""
    members = archive(folder / "model.keras")
    with h5py.File(folder / "secret.h5", "w") as file:
        file["secret"] = np.zeros(3, "f4")
    weights = io.BytesIO(members["model.weights.h5"])
    with h5py.File(weights, "r+") as file:
        place = next(n for n in _datasets(file) if file[n].shape == (3,))
        del file[place]
        file[place] = h5py.ExternalLink(str(folder / "secret.h5"), "/secret")
    return put(folder / "model.keras", {**members, "model.weights.h5": weights.getvalue()})


def old(folder: Path, marker: Path) -> Path:
    """The format of old, under its own name."""
    with h5py.File(folder / "model.h5", "w") as file:
        file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": []})
    return folder / "model.h5"


def renamed(folder: Path, marker: Path) -> Path:
    """The format of old, under the new name."""
    return old(folder, marker).rename(folder / "model.keras")


def bomb(folder: Path, marker: Path) -> Path:
    """Weights of which a layer claims a terabyte."""
    members = archive(folder / "model.keras")
    weights = io.BytesIO(members["model.weights.h5"])
    with h5py.File(weights, "r+") as file:
        place = next(n for n in _datasets(file) if file[n].shape == (3,))
        del file[place]
        file.create_dataset(place, (1 << 38,), "f4", chunks=(1 << 20,), compression="gzip")
    return put(folder / "model.keras", {**members, "model.weights.h5": weights.getvalue()})


def _datasets(file: h5py.File) -> list[str]:
    names: list[str] = []
    file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    return names


HOSTILE: dict[str, Callable[[Path, Path], Path]] = {
    "code in a Lambda layer": code,
    "exec as a layer": function("builtins", "exec"),
    "eval as a layer": function("builtins", "eval"),
    "a class of the standard library as a layer": function("subprocess", "Popen"),
    "os.system as an activation": activation,
    "a member that climbs": climbs,
    "weights in another file": outside,
    "weights behind a link": linked,
    "weights of a terabyte": bomb,
    "an .h5 file": old,
    "an .h5 file by another name": renamed,
}
