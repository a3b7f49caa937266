"""Everything that decides a training run, as one frozen value, to and from TOML."""

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from brainseg_runtime.errors import UsageRefused
from brainseg_runtime.spec import Activation, Normalisation

T = TypeVar("T")

__all__ = [
    "RECIPES",
    "Backend",
    "Data",
    "Loss",
    "Network",
    "Precision",
    "Task",
    "TrainConfig",
    "Training",
    "from_toml",
    "load",
    "to_toml",
]

RECIPES = tuple(
    sorted(path.name.removesuffix(".toml") for path in (files("brainseg_trainer") / "recipes").iterdir())
)
"""Those that come with the package."""
ROOT = "glioma"
"""The recipe that all others rest on; it leaves nothing out."""


Backend = Literal["tensorflow", "jax"]
Precision = Literal["fp32", "bf16", "fp16"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""Of a model: it becomes part of file names."""


@dataclass(frozen=True)
class Network:
    """Which network."""

    preset: Literal["s2d", "unet3d", "isensee2017", "nnunet", "unet2d"]
    width: int
    """Filters on the first level."""
    depth: int
    """Levels."""
    norm: Literal["batch", "instance"] = "batch"
    upsampling: Literal["transposed", "nearest"] = "transposed"
    """Transposed convolutions, or nearest neighbours and a convolution."""
    dropout: float = 0.0
    """Fraction of the feature maps that a step leaves out."""
    auxiliary: int = 0
    """Heads on coarser levels, for deep supervision; they leave before export."""
    slices: int = 1
    """``unet2d``: neighbouring slices that an answer is made from, an odd number: 2.5D from 3 on."""


@dataclass(frozen=True)
class Task:
    """What goes in and comes out."""

    modalities: tuple[str, ...] = ("t1", "t1c", "t2", "flair")
    """Input channels, in order."""
    optional: tuple[str, ...] = ()
    """Those of them that a scan may lack; training must then leave them out of some."""
    activation: Activation = "sigmoid"
    """``sigmoid``: a channel per region. ``softmax``: a channel per label and one for the background."""
    types: bool = False
    """Whether the tumour's type is told too, where the data say it."""
    min_volume_mm3: tuple[float, float, float] = (50.0, 50.0, 50.0)
    """Of WT, TC and ET: connected pieces smaller than this are dropped. Below 50 mm3 most are false, and
    none of them changes a plan."""


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
    normalisation: Normalisation = "zscore"
    """As in ``ModelSpec``."""
    augmentation: Literal["none", "light", "full"] = "light"
    """``light``: mirrors and intensities. ``full``: nnU-Net's table, a bias field and absent modalities."""
    unenhanced: float = 0.0
    """Share of the tiles whose tumour is made to take up no contrast agent: see ``augment.enhancement``."""
    fold: int = 0
    """1 to 5: which fold of a cross-validation is held out, instead of a share; 0: none is."""


@dataclass(frozen=True)
class Loss:
    """What is minimised; see ``losses``."""

    kind: Literal[
        "bce",
        "dice",
        "weighted_dice",
        "log_dice",
        "dice_bce",
        "dice_ce",
        "generalized_dice",
        "tversky",
        "focal_tversky",
        "focal",
        "jaccard",
        "boundary",
    ] = "dice_bce"
    over: Literal["batch", "tile"] = "batch"
    """What an overlap is summed over before its fraction is taken: all tiles of a step, or each alone."""
    weights: tuple[float, ...] = ()
    """``weighted_dice``: one per region."""


@dataclass(frozen=True)
class Training:
    """How long and how fast it learns."""

    steps: int
    batch: int
    """Tiles per step."""
    learning_rate: float
    """At the end of the warm-up; the schedule then takes it down."""
    warmup: int
    """Steps in which the learning rate rises from 0."""
    weight_decay: float
    """On kernels only, apart from the gradient (Loshchilov and Hutter 2019)."""
    validate_every: int
    """Steps between scores on the held-out scans; the last step is always scored."""
    checkpoint_seconds: float
    """What a killed run loses at most."""
    optimiser: Literal["adamw", "sgd"] = "adamw"
    """``sgd`` with Nesterov's momentum of 0.99, as nnU-Net's."""
    schedule: Literal["cosine", "poly", "exponential", "constant"] = "cosine"
    """To 0 by a cosine or by (1 - t)^0.9; by 0.985 every 100 steps (Isensee et al. 2017); or not at all."""
    clip: float = 0.0
    """Largest norm of all gradients together; 0 leaves them as they are."""
    ema: float = 0.0
    """Share that a running mean of the weights keeps each step; 0 takes the weights as they are.

    It remembers 1 / (1 - ema) steps, at most a quarter of the training: else it still holds the beginning.
    """
    precision: Precision = "fp32"
    """Of activations; weights and the loss stay float32."""
    patience: int = 0
    """Scores without a better one after which training stops; 0 never stops early."""
    backend: Backend = "tensorflow"
    """What Keras computes with."""


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
    task: Task = field(default_factory=Task)
    loss: Loss = field(default_factory=Loss)

    def __post_init__(self) -> None:
        network, data, training, task, loss = self.network, self.data, self.training, self.task, self.loss
        flat = network.preset == "unet2d"
        ranges = {
            "name is letters, digits, dots, - and _": bool(_NAME.fullmatch(self.name)),
            "seed is not negative": self.seed >= 0,
            "network.width is at least 1": network.width >= 1,
            "network.depth is 2 to 7": 2 <= network.depth <= 7,
            "network.dropout is 0 or more and less than 1": 0 <= network.dropout < 1,
            "network.auxiliary is at most network.depth - 2": 0 <= network.auxiliary <= network.depth - 2,
            "network.auxiliary is 0 for isensee2017, which supervises itself": (
                network.preset != "isensee2017" or network.auxiliary == 0
            ),
            "network.slices is odd, and 1 but for unet2d": network.slices % 2 == 1
            and network.slices >= 1
            and (flat or network.slices == 1),
            "task.modalities are named once each": 0 < len(task.modalities) == len(set(task.modalities)),
            "task.optional are some of task.modalities, not t1c where it is the reference": (
                set(task.optional) <= set(task.modalities) - {"t1c"}
                and len(task.optional) < len(task.modalities)
            ),
            "data.spacing is 0.1 to 20 mm": all(0.1 <= mm <= 20 for mm in data.spacing),
            "data.tile is positive": min(data.tile) > 0,
            "data.validation is between 0 and 1": 0 < data.validation < 1,
            "data.tumour is 0 to 1": 0 <= data.tumour <= 1,
            "data.unenhanced is 0 to 1, and 0 without t1 and t1c": (
                0 <= data.unenhanced <= 1 and (data.unenhanced == 0 or {"t1", "t1c"} <= set(task.modalities))
            ),
            "data.fold is 0 to 5": 0 <= data.fold <= 5,
            "loss.kind bce and dice_bce are for sigmoid, dice_ce for softmax": (
                task.activation == ("softmax" if loss.kind == "dice_ce" else "sigmoid")
                or loss.kind not in ("bce", "dice_bce", "dice_ce")
            ),
            "loss.weights are positive, and belong to weighted_dice": all(w > 0 for w in loss.weights)
            and bool(loss.weights) == (loss.kind == "weighted_dice"),
            "training.steps is at least 1": training.steps >= 1,
            "training.batch is at least 1": training.batch >= 1,
            "training.learning_rate is positive": training.learning_rate > 0,
            "training.warmup is less than training.steps": 0 <= training.warmup < training.steps,
            "training.weight_decay is not negative": training.weight_decay >= 0,
            "training.validate_every is at least 1": training.validate_every >= 1,
            "training.checkpoint_seconds is not negative": training.checkpoint_seconds >= 0,
            "training.clip is not negative": training.clip >= 0,
            "training.ema is 0 or more and less than 1": 0 <= training.ema < 1,
            "training.ema remembers at most a quarter of training.steps": (
                training.ema == 0 or training.steps * (1 - training.ema) > 3.999
            ),
            "training.patience is not negative": training.patience >= 0,
        }
        for rule, kept in ranges.items():
            if not kept:
                raise _refused(f"it breaks the rule that {rule}")


def load(name: str) -> TrainConfig:
    """A recipe by its name, or a TOML file by its path, laid over its ``base``, else over ``glioma``.

    Raises:
        UsageRefused: ``E_USAGE`` for a missing file or one that does not say what a run needs.
    """
    if name in RECIPES:
        return _build(TrainConfig, _recipe(name), "")
    try:
        text = Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageRefused(
            "E_USAGE",
            f"the configuration {name} cannot be read: {error}.",
            f"Give a TOML file, or one of the recipes {', '.join(RECIPES)}.",
        ) from error
    return _build(TrainConfig, _on_its_base(_parsed(text)), "")


def from_toml(text: str) -> TrainConfig:
    """Read a whole configuration, as ``to_toml`` wrote it.

    Raises:
        UsageRefused: ``E_USAGE`` for anything but a whole and valid configuration.
    """
    return _build(TrainConfig, _parsed(text), "")


def to_toml(config: TrainConfig) -> str:
    """The configuration as TOML; ``from_toml`` gives it back."""
    raw = asdict(config)
    tables = {key: raw.pop(key) for key in list(raw) if isinstance(raw[key], dict)}
    lines = _assignments(raw)
    for name, table in tables.items():
        lines += ["", f"[{name}]", *_assignments(table)]
    return "\n".join(lines) + "\n"


def _recipe(name: str) -> dict[str, Any]:
    """A recipe with all that it leaves out."""
    text = (files("brainseg_trainer") / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
    return tomllib.loads(text) if name == ROOT else _on_its_base(tomllib.loads(text))


def _parsed(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _refused(f"it is not TOML: {error}") from error


def _on_its_base(table: Mapping[str, Any]) -> dict[str, Any]:
    """A table laid over the recipe that it names as its ``base``."""
    base = table.get("base", ROOT)
    if base not in RECIPES:
        raise _refused(f"base is one of {', '.join(RECIPES)}, received {base!r}")
    return _overlaid(_recipe(base), {key: value for key, value in table.items() if key != "base"})


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
    needed = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]  # type: ignore[arg-type]
    for key in table.keys() - set(hints):
        raise _refused(f"{where}{key} is unknown; known are {', '.join(hints)}")
    for key in needed:
        if key not in table:
            raise _refused(f"{where}{key} is missing")
    values: dict[str, Any] = {key: _value(hints[key], value, where + key) for key, value in table.items()}
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
        if isinstance(value, list) and parts[1:] == (...,):
            return tuple(_value(parts[0], item, where) for item in value)
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
