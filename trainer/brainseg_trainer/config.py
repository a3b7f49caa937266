"""Everything that decides a training run, as one frozen value, to and from TOML."""

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from brainseg_runtime.errors import UsageRefused

T = TypeVar("T")

__all__ = ["RECIPES", "Data", "Network", "TrainConfig", "Training", "from_toml", "load", "to_toml"]

RECIPES = ("demo", "glioma")
"""The recipes that come with the package; ``glioma`` fills in what a file leaves out."""


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""Of a model: it becomes part of file names."""


@dataclass(frozen=True)
class Network:
    """Which network."""

    preset: Literal["s2d", "unet3d"]
    width: int
    """Filters on the first level."""
    depth: int
    """Levels."""


@dataclass(frozen=True)
class Data:
    """What the network sees."""

    spacing: tuple[float, float, float]
    """Voxel size of the network's grid, in mm, along R, A, S."""
    tile: tuple[int, int, int]
    """Voxels that the network sees at once."""
    validation: float
    """Fraction of the patients that is held out, at least one."""
    tumour: float
    """Fraction of the tiles that is centred on a voxel of tumour."""


@dataclass(frozen=True)
class Training:
    """How long and how fast it learns."""

    steps: int
    batch: int
    """Tiles per step."""
    learning_rate: float
    """At the end of the warm-up; a cosine then takes it to 0."""
    warmup: int
    """Steps in which the learning rate rises from 0."""
    weight_decay: float
    """AdamW's, on kernels only."""
    validate_every: int
    """Steps between scores on the held-out scans; the last step is always scored."""
    checkpoint_seconds: float
    """What a killed run loses at most."""


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Raises:
        UsageRefused: ``E_USAGE`` for a value out of its range.
    """

    name: str
    """Of the model."""
    seed: int
    """Of the split, the initial weights and every tile."""
    network: Network
    data: Data
    training: Training

    def __post_init__(self) -> None:
        network, data, training = self.network, self.data, self.training
        ranges = {
            "name is letters, digits, dots, - and _": bool(_NAME.fullmatch(self.name)),
            "seed is not negative": self.seed >= 0,
            "network.width is at least 1": network.width >= 1,
            "network.depth is 2 to 7": 2 <= network.depth <= 7,
            "data.spacing is 0.1 to 20 mm": all(0.1 <= mm <= 20 for mm in data.spacing),
            "data.tile is positive": min(data.tile) > 0,
            "data.validation is between 0 and 1": 0 < data.validation < 1,
            "data.tumour is 0 to 1": 0 <= data.tumour <= 1,
            "training.steps is at least 1": training.steps >= 1,
            "training.batch is at least 1": training.batch >= 1,
            "training.learning_rate is positive": training.learning_rate > 0,
            "training.warmup is less than training.steps": 0 <= training.warmup < training.steps,
            "training.weight_decay is not negative": training.weight_decay >= 0,
            "training.validate_every is at least 1": training.validate_every >= 1,
            "training.checkpoint_seconds is not negative": training.checkpoint_seconds >= 0,
        }
        for rule, kept in ranges.items():
            if not kept:
                raise _refused(f"it breaks the rule that {rule}")


def load(name: str) -> TrainConfig:
    """A recipe by its name, or a TOML file by its path, laid over the recipe ``glioma``.

    Raises:
        UsageRefused: ``E_USAGE`` for a missing file or one that does not say what a run needs.
    """
    base = tomllib.loads(_recipe("glioma"))
    if name in RECIPES:
        return from_toml(_recipe(name), base)
    try:
        return from_toml(Path(name).read_text(encoding="utf-8"), base)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageRefused(
            "E_USAGE",
            f"the configuration {name} cannot be read: {error}.",
            f"Give a TOML file, or one of the recipes {', '.join(RECIPES)}.",
        ) from error


def from_toml(text: str, base: Mapping[str, Any] | None = None) -> TrainConfig:
    """Read a configuration; ``base`` fills in what the text leaves out.

    Raises:
        UsageRefused: ``E_USAGE`` for anything but a whole and valid configuration.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _refused(f"it is not TOML: {error}") from error
    return _build(TrainConfig, _overlaid(base or {}, table), "")


def to_toml(config: TrainConfig) -> str:
    """The configuration as TOML; ``from_toml`` gives it back."""
    raw = asdict(config)
    tables = {key: raw.pop(key) for key in list(raw) if isinstance(raw[key], dict)}
    lines = _assignments(raw)
    for name, table in tables.items():
        lines += ["", f"[{name}]", *_assignments(table)]
    return "\n".join(lines) + "\n"


def _recipe(name: str) -> str:
    return (files("brainseg_trainer") / "recipes" / f"{name}.toml").read_text(encoding="utf-8")


def _overlaid(base: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in table.items():
        below = base.get(key)
        both = isinstance(value, dict) and isinstance(below, dict)
        merged[key] = _overlaid(below, value) if both and below is not None else value
    return merged


def _assignments(table: Mapping[str, Any]) -> list[str]:
    # JSON's strings, numbers and lists are TOML's too.
    return [f"{key} = {json.dumps(value)}" for key, value in table.items()]


def _build(kind: type[T], table: object, where: str) -> T:
    """A dataclass from a TOML table, every field named, nothing unknown."""
    if not isinstance(table, dict):
        raise _refused(f"{where or 'the file'} is not a table")
    hints = get_type_hints(kind)
    names = list(hints)
    for key in table.keys() - set(names):
        raise _refused(f"{where}{key} is unknown; known are {', '.join(names)}")
    for key in names:
        if key not in table:
            raise _refused(f"{where}{key} is missing")
    values: dict[str, Any] = {key: _value(hints[key], table[key], where + key) for key in names}
    return kind(**values)


def _value(hint: object, value: object, where: str) -> object:
    """A TOML value as the type that a field asks for."""
    if isinstance(hint, type) and is_dataclass(hint):
        return _build(hint, value, f"{where}.")
    parts = get_args(hint)
    if get_origin(hint) is Literal:
        if value in parts:
            return value
        raise _refused(f"{where} is one of {', '.join(map(repr, parts))}, received {value!r}")
    if get_origin(hint) is tuple:
        if isinstance(value, list) and len(value) == len(parts):
            return tuple(_value(part, item, where) for part, item in zip(parts, value, strict=True))
        raise _refused(f"{where} is a list of {len(parts)}, received {value!r}")
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is hint:
        return value
    raise _refused(f"{where} is of type {getattr(hint, '__name__', hint)}, received {value!r}")


def _refused(what: str) -> UsageRefused:
    return UsageRefused("E_USAGE", f"the configuration is refused: {what}.", "Correct the TOML file.")
