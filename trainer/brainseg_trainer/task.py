"""What a network is to learn: its inputs, its labels, its regions, and how truth images spell them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
from brainseg_runtime.errors import ScanRefused, UsageRefused
from brainseg_runtime.scans import ALIASES
from brainseg_runtime.spec import Label, Modality, ModelSpec, Region
from numpy.typing import NDArray

from brainseg_trainer.config import TrainConfig, load

__all__ = ["BRATS_WORDS", "glioma_spec", "label_table", "masks", "read_spec", "scheme_of", "type_masks"]

BRATS_WORDS = {"t1": "t1n", "t1c": "t1c", "t2": "t2w", "flair": "t2f"}
"""Modality -> the word that BraTS 2023 has for it in file names."""


def glioma_spec(config: TrainConfig, divisor: tuple[int, int, int]) -> ModelSpec:
    """The task of BraTS: modalities in; whole tumour, tumour core and enhancing tumour out.

    Raises:
        UsageRefused: ``E_USAGE`` for a modality that BraTS does not have, or for types.
        BundleInvalid: ``E_SPEC`` where the tile is not a multiple of the network's divisor.
    """
    names = config.task.modalities
    if config.task.types:
        raise UsageRefused(
            "E_USAGE", "these data do not say the type of a tumour.", "Set task.types to false."
        )
    if not set(names) <= set(BRATS_WORDS):
        raise UsageRefused(
            "E_USAGE",
            f"task.modalities are some of {', '.join(BRATS_WORDS)}, received {', '.join(names)}.",
            "Correct the TOML file.",
        )
    softmax = config.task.activation == "softmax"
    parts = (("WT", (1, 2, 3)), ("TC", (1, 3)), ("ET", (3,)))
    return ModelSpec(
        name=config.name,
        modalities=tuple(Modality(name, ALIASES[name], name in config.task.optional) for name in names),
        reference="t1c" if "t1c" in names else next(n for n in names if n not in config.task.optional),
        labels=(Label(1, "NCR"), Label(2, "ED"), Label(3, "ET")),
        regions=tuple(
            Region(name, labels, min_volume_mm3=mm3)
            for (name, labels), mm3 in zip(parts, config.task.min_volume_mm3, strict=True)
        ),
        tile=config.data.tile,
        divisor=divisor,
        activation=config.task.activation,
        channels=(0, 1, 2, 3) if softmax else (),
        spacing=config.data.spacing,
        normalisation=config.data.normalisation,
        scheme=scheme_of(config),
    )


def scheme_of(config: TrainConfig) -> Literal["tiles", "whole"]:
    """One pass over the head can stand for many tiles, unless the network has statistics of its input."""
    return "tiles" if config.network.norm == "instance" else "whole"


def read_spec(path: Path | None) -> ModelSpec:
    """The specification in a file, or that of BraTS' task where there is none.

    Raises:
        UsageRefused: ``E_USAGE`` for a file that cannot be read.
        BundleInvalid: ``E_BUNDLE_FORMAT``, ``E_SPEC``.
    """
    if path is None:
        return glioma_spec(load("glioma"), (1, 1, 1))
    try:
        return ModelSpec.from_json(path.read_bytes())
    except OSError as error:
        raise UsageRefused(
            "E_USAGE", f"{path} cannot be read: {error}.", "Name a run's spec.json."
        ) from error


def label_table(values: Iterable[int], spec: ModelSpec) -> NDArray[np.uint8]:
    """How truth images spell the spec's labels: a table (256,) from a voxel's value to the label.

    ``values`` are all that occur in a whole data set. BraTS up to 2021 writes 4 for ET and never 3; where
    both occur, 4 means something else and is refused.

    Raises:
        ScanRefused: ``E_LABELS`` for values that are no labels of the spec.
    """
    known = {0, *spec.label_names}
    found = set(values)
    table = np.arange(256, dtype=np.uint8)
    if 4 in found and 3 not in found and 4 not in known and spec.label_names.get(3) == "ET":
        table[4] = 3
        found.remove(4)
    if not found <= known:
        raise ScanRefused(
            "E_LABELS",
            f"the truth images hold the values {sorted(found)}, the labels are "
            f"{', '.join(f'{label.value} {label.name}' for label in spec.labels)}.",
            "Give label images in the scheme of BraTS 2023, or of 2021 and before.",
        )
    return table


def masks(labels: NDArray[np.uint8], spec: ModelSpec) -> NDArray[np.float32]:
    """What the network's label channels should say, 0 or 1: (...) -> (..., R).

    A channel per region, or for a softmax model one per label and one for the background.
    """
    regions = [region.labels for region in spec.regions]
    members = [(value,) for value in spec.channels] if spec.channels else regions
    return np.stack([np.isin(labels, values) for values in members], axis=-1).astype(np.float32)


def type_masks(labels: NDArray[np.uint8], spec: ModelSpec, kind: str) -> NDArray[np.float32]:
    """What the network's type channels should say: (...) -> (..., T), 1 for the type in the tumour."""
    shares = np.array([name == kind for name in spec.types], np.float32)
    return (labels > 0)[..., None] * shares
