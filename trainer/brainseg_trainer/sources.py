"""What a folder of data is: BraTS' scans, a data set with a dataset.json, or an import of figshare."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from brainseg_runtime.errors import ScanRefused
from brainseg_runtime.spec import ModelSpec

from brainseg_trainer.config import load
from brainseg_trainer.dataset import TrainingScans, find_training_scans
from brainseg_trainer.figshare.importing import INDEX
from brainseg_trainer.figshare.task import figshare_spec
from brainseg_trainer.store import Origin
from brainseg_trainer.task import glioma_spec

__all__ = ["DataSet", "open_source"]


@dataclass(frozen=True, eq=False)
class DataSet:
    """A folder of data, understood."""

    scans: TrainingScans
    spec: ModelSpec
    """What is to be learnt from them."""
    origins: Mapping[str, Origin]
    """Scan -> patient, fold and type, where the data set says them."""


def open_source(folder: Path, config: str) -> DataSet:
    """Find the scans of a folder, for a network whose grid a configuration describes.

    Raises:
        ScanRefused: see ``find_training_scans``; ``E_INPUT_MISSING`` for a damaged ``figshare.json``.
        UsageRefused: ``E_USAGE`` for the configuration.
    """
    index = folder / INDEX
    if index.is_file():
        spec = figshare_spec("figshare", FIGSHARE_TILE, (1, 1, 1))
        return DataSet(find_training_scans(folder, spec), spec, _figshare_origins(index))
    spec = glioma_spec(load(config), 1)
    return DataSet(find_training_scans(folder, spec), spec, {})


FIGSHARE_TILE = (256, 256, 1)


def _figshare_origins(index: Path) -> dict[str, Origin]:
    try:
        scans = json.loads(index.read_bytes())["scans"]
        return {name: Origin(scan["patient"], scan["fold"], scan["type"]) for name, scan in scans.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ScanRefused(
            "E_INPUT_MISSING", f"{index} cannot be read: {error}.", "Import the slices again."
        ) from error
