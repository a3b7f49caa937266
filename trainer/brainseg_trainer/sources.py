"""What data are, and which of them are held out: scans in a folder, figshare's slices, a store of either."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from brainseg_runtime.errors import ScanRefused, UsageRefused
from brainseg_runtime.scans import Scan
from brainseg_runtime.spec import ModelSpec

from brainseg_trainer.config import TrainConfig
from brainseg_trainer.dataset import TrainingScans, find_training_scans, patient_of, split
from brainseg_trainer.figshare.importing import INDEX, is_import
from brainseg_trainer.figshare.task import figshare_spec
from brainseg_trainer.networks import divisor
from brainseg_trainer.simulation import TRAINING, is_simulation
from brainseg_trainer.store import FOLDS, Origin, Store, folds_of
from brainseg_trainer.task import glioma_spec

__all__ = ["DataSet", "open_data", "origins_in"]


@dataclass(frozen=True, eq=False)
class DataSet:
    """Scans with truth, and what is known of them."""

    scans: TrainingScans
    spec: ModelSpec
    """What is to be learnt from them."""
    origins: Mapping[str, Origin]
    """Scan -> patient, fold and type."""
    folder: Path
    """Where the scans lie."""
    store: Store | None = None
    """The same scans, prepared."""
    simulation: Path | None = None
    """Ingredients of the heads to train on; the scans are then all held out."""

    @property
    def kinds(self) -> dict[str, str]:
        """Scan -> type of tumour, an empty text where the data do not say it."""
        return {scan: origin.kind for scan, origin in self.origins.items()}

    def divided(self, config: TrainConfig) -> tuple[tuple[Scan, ...], tuple[Scan, ...]]:
        """Scans to train on and scans to hold out: a fold, or a share of the patients.

        Raises:
            ScanRefused: ``E_TOO_FEW_SCANS`` for fewer patients than it takes, ``E_FOLDS``.
        """
        if self.simulation:
            if config.data.fold:
                raise UsageRefused("E_USAGE", "simulated heads have no folds.", "Set data.fold to 0.")
            return (), self.scans.scans
        patients = {scan: origin.patient for scan, origin in self.origins.items()}
        if config.data.fold:
            return self._fold(config.data.fold, len(set(patients.values())))
        return split(self.scans.scans, patients, config.data.validation, config.seed)

    def _fold(self, number: int, patients: int) -> tuple[tuple[Scan, ...], tuple[Scan, ...]]:
        if patients < FOLDS:
            raise ScanRefused(
                "E_TOO_FEW_SCANS",
                f"{patients} patients do not make {FOLDS} folds.",
                "Give more patients, or set data.fold to 0.",
            )
        folds = folds_of(self.origins)
        training = tuple(scan for scan in self.scans.scans if folds[scan.id] != number)
        held_out = tuple(scan for scan in self.scans.scans if folds[scan.id] == number)
        if not held_out or not training:
            raise ScanRefused(
                "E_FOLDS", f"the data have the folds {sorted(set(folds.values()))}.", "Take one of them."
            )
        return training, held_out


def open_data(data: Path, config: TrainConfig) -> DataSet:
    """Understand a folder of scans, or a store that was made from one, or a simulation's folder.

    Raises:
        ScanRefused: see ``find_training_scans``; ``E_INPUT_MISSING`` for a damaged ``figshare.json``;
            ``E_STORE`` for a store of another model, or one whose scans are gone.
        UsageRefused: ``E_USAGE`` for a configuration that asks for what the data do not have.
        BundleInvalid: ``E_SPEC`` where the tile does not suit the network.
    """
    store = Store.open(data) if data.is_file() else None
    folder = store.source if store else data
    is_figshare = is_import(folder)
    spec = (figshare_spec if is_figshare else glioma_spec)(config, divisor(config.network))
    if store:
        store.require(spec)
    scans = find_training_scans(folder, spec)
    if store:
        scans = replace(scans, scans=_stored_scans(store, scans))
    told = origins_in(folder)
    origins = {scan.id: told.get(scan.id, Origin(patient_of(scan))) for scan in scans.scans}
    if store:
        origins |= {scan.id: Origin(scan.patient, scan.fold, scan.kind) for scan in store.scans}
    simulation = folder / TRAINING if is_simulation(folder) else None
    return DataSet(scans, spec, origins, folder, store, simulation)


def _stored_scans(store: Store, source: TrainingScans) -> tuple[Scan, ...]:
    """The scans that are in a store, for those that are held out are read from their folder."""
    stored = {scan.id for scan in store.scans}
    missing = sorted(stored - {scan.id for scan in source.scans})
    if missing:
        raise ScanRefused(
            "E_STORE",
            f"{store.source} no longer holds {len(missing)} scans of {store.path}, first {missing[0]}.",
            "Make the store again.",
        )
    return tuple(scan for scan in source.scans if scan.id in stored)


def origins_in(folder: Path) -> dict[str, Origin]:
    """Scan -> patient, fold and type, where a folder says them, as an import of figshare does.

    Raises:
        ScanRefused: ``E_INPUT_MISSING`` for a damaged ``figshare.json``.
    """
    index = folder / INDEX
    if not is_import(folder):
        return {}
    try:
        scans = json.loads(index.read_bytes())["scans"]
        return {name: Origin(scan["patient"], scan["fold"], scan["type"]) for name, scan in scans.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ScanRefused(
            "E_INPUT_MISSING", f"{index} cannot be read: {error}.", "Import the slices again."
        ) from error
