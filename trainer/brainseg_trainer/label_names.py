"""How the truth images of a data set spell the labels of a task.

Where a ``dataset.json`` stands with them, it says so; elsewhere they follow BraTS. The same values mean
different things: in the Medical Segmentation Decathlon and in nnU-Net's BraTS, 1 is oedema and 2 the necrotic
core; in BraTS itself it is the other way round. So names decide, not values.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from brainseg_runtime.errors import ScanRefused
from brainseg_runtime.names import words
from brainseg_runtime.spec import ModelSpec
from numpy.typing import NDArray

from brainseg_trainer.task import label_table

__all__ = ["named_table", "truth_table"]

WORDS: Mapping[str, tuple[str, ...]] = {
    "NCR": ("ncr", "net", "necrosis", "necrotic", "non enhancing", "nonenhancing", "nect"),
    "ED": ("ed", "edema", "oedema", "snfh"),
    "ET": ("et", "enhancing", "at", "aet"),
    "WT": ("wt", "whole"),
    "TC": ("tc", "core"),
    "TUMOUR": ("tumour", "tumor"),
}
"""Label or region -> words that announce it; the first line that fits decides, so that "non enhancing" is
no ET."""


def truth_table(truths: Iterable[Path], values: Iterable[int], spec: ModelSpec) -> NDArray[np.uint8]:
    """(256,): a truth voxel's value -> the spec's label.

    ``values`` are all that occur in the truth images of a whole data set.

    Raises:
        ScanRefused: ``E_LABELS`` for values that are no labels of the spec; ``E_DATASET_JSON`` where a
            ``dataset.json`` names no known labels, or belongs to a part of the truth images only.
    """
    naming = _naming_file(truths)
    if naming is None:
        return label_table(values, spec)
    table = named_table(naming, spec)
    unnamed = [value for value in sorted(set(values)) if table[value] == UNNAMED]
    if unnamed:
        raise ScanRefused(
            "E_LABELS",
            f"the truth images hold the values {unnamed}, which {naming} does not name.",
            "Name every value in its entry labels.",
        )
    return table


def named_table(path: Path, spec: ModelSpec) -> NDArray[np.uint8]:
    """(256,): a truth voxel's value -> the spec's label that a ``dataset.json`` calls by the same name.

    Labels may be single values, or regions of several values as nnU-Net has them. Values that are not
    named become 255, which no spec of ours has.

    Raises:
        ScanRefused: ``E_DATASET_JSON`` for a file that does not name labels that the spec knows.
    """
    try:
        named = json.loads(path.read_bytes())["labels"]
        values = {key: value for key, value in map(_pair, named.items()) if value != (0,)}
        table = np.full(256, UNNAMED, np.uint8)
        table[0] = 0
        # Large regions first, so that those inside them have the last word.
        for name, members in sorted(values.items(), key=lambda item: -len(item[1])):
            table[list(members)] = _label(name, spec)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, LookupError) as error:
        raise ScanRefused(
            "E_DATASET_JSON",
            f"{path} does not name labels that are known here: {error}.",
            f"Name them {', '.join(spec.label_names.values())} in its entry labels.",
        ) from error
    return table


UNNAMED = 255


def _naming_file(truths: Iterable[Path]) -> Path | None:
    found = {_beside(truth) for truth in truths}
    if len(found) > 1:
        names = ", ".join(sorted(str(path) for path in found if path))
        raise ScanRefused(
            "E_DATASET_JSON",
            f"the truth images belong to several data sets, whose labels may differ: {names}.",
            "Give the folder of one data set.",
        )
    return next(iter(found), None)


def _beside(truth: Path) -> Path | None:
    places = (truth.parent / "dataset.json", truth.parent.parent / "dataset.json")
    return next((path for path in places if path.is_file()), None)


def _pair(item: tuple[str, Any]) -> tuple[str, tuple[int, ...]]:
    """Name and values: the Decathlon writes value -> name, nnU-Net name -> value or values."""
    key, value = item
    if isinstance(value, str):
        return value, (int(key),)
    members = tuple(int(v) for v in value) if isinstance(value, list) else (int(value),)
    if not all(0 <= v < UNNAMED for v in members):
        raise ValueError(f"{key} has the value {value}")
    return key, members


def _label(name: str, spec: ModelSpec) -> int:
    """The spec's label that a name means; for a region, the label that is its own."""
    own = {label.name.casefold(): label.value for label in spec.labels}
    own |= {region.name.casefold(): spec.own_label(region) for region in spec.regions}
    said = " ".join(words(name))
    meant = next((key for key, known in WORDS.items() if any(_says(said, w) for w in known)), name)
    if name.casefold() in own:
        return own[name.casefold()]
    return own[meant.casefold()]


def _says(said: str, word: str) -> bool:
    return f" {word} " in f" {said} "
