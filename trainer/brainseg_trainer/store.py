"""One file that holds a whole data set as training wants it: prepared, compressed, checksummed (HDF5).

It is written under a temporary name, marked complete and renamed, so a killed import leaves nothing that
looks whole. Readers open it for each part that they take, so that any number of processes can share it and
none holds more than a tile.

    /                    format, complete
    /index               JSON: spec, source, scans in order with patient, fold, type, shape, hashes; refusals
    /scans/<n>/data      (i, j, k, C) float32, as ``prepare`` gives it
    /scans/<n>/labels    (i, j, k) uint8
    /scans/<n>/tumour    (m, 3) uint16: voxels to centre tiles on
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
from brainseg_runtime.errors import ScanRefused, UsageRefused
from brainseg_runtime.files import becoming
from brainseg_runtime.preprocess import prepare, prepare_labels
from brainseg_runtime.scans import Scan
from brainseg_runtime.spec import ModelSpec
from numpy.typing import NDArray

from brainseg_trainer.dataset import TrainingScans, patient_of, tumour_voxels
from brainseg_trainer.example import Example

__all__ = ["FORMAT", "Origin", "Store", "StoredArray", "StoredScan", "folder_of", "folds_of", "write_store"]

FORMAT = 1
FOLDS = 5
EDGE, THIN_EDGE = 32, 128
"""Voxels along a chunk's edge: for tiles that are cubes, and for those that are single slices."""


@dataclass(frozen=True)
class Origin:
    """What a data set says about a scan beside its voxels."""

    patient: str
    fold: int | None = None
    """Of the data set's own cross-validation."""
    kind: str = ""
    """Type of tumour."""


@dataclass(frozen=True)
class StoredScan:
    """One scan of a store."""

    id: str
    patient: str
    fold: int
    """1 to the number of folds; all scans of a patient are in one."""
    kind: str
    """Type of tumour; empty where the data set does not say it."""
    shape: tuple[int, int, int]
    """(i, j, k) on the network's grid."""
    sources: Mapping[str, str]
    """File -> sha256, the truth's included."""


@dataclass(frozen=True, eq=False)
class StoredArray:
    """An array in a store, of which parts are read as they are asked for."""

    path: Path
    name: str
    shape: tuple[int, ...]

    def __getitem__(self, part: tuple[slice, ...] | int) -> NDArray[Any]:
        """A part, its checksums held against its bytes.

        Raises:
            ScanRefused: ``E_STORE``.
        """
        with _reading(self.path) as file:
            values: NDArray[Any] = file[self.name][part]
        return values


@dataclass(frozen=True)
class Store:
    """A store that was opened and is whole; holds no file open."""

    path: Path
    spec: ModelSpec
    source: Path
    """The folder that it was made from."""
    scans: tuple[StoredScan, ...]
    refused: Mapping[str, str] = field(default_factory=dict)
    """Scan -> why it is not in the store."""

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a store.

        Raises:
            ScanRefused: ``E_STORE`` for anything but a complete store of this format,
                ``E_INPUT_MISSING`` where there is no file.
        """
        if not path.is_file():
            raise ScanRefused("E_INPUT_MISSING", f"{path} is no file.", "Name a store.")
        with _reading(path) as file:
            if file.attrs["format"] != FORMAT or not file.attrs["complete"]:
                raise ValueError("it is of another format, or was not finished")
            index = json.loads(file["index"][()])
            scans = tuple(StoredScan(**{**raw, "shape": tuple(raw["shape"])}) for raw in index["scans"])
            spec = ModelSpec.from_json(json.dumps(index["spec"]))
        return cls(path, spec, Path(index["source"]), scans, index["refused"])

    def examples(self, ids: Sequence[str]) -> list[Example]:
        """Scans to draw tiles from, in the order of ``ids``."""
        place = {scan.id: n for n, scan in enumerate(self.scans)}
        return [self._example(place[scan]) for scan in ids]

    def fold(self, number: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Ids of the scans to train on and of those that a fold holds out.

        Raises:
            UsageRefused: ``E_USAGE`` for a fold that no scan is in.
        """
        held = tuple(scan.id for scan in self.scans if scan.fold == number)
        if not held:
            folds = sorted({scan.fold for scan in self.scans})
            raise UsageRefused("E_USAGE", f"{self.path} has no fold {number}.", f"Its folds are {folds}.")
        return tuple(scan.id for scan in self.scans if scan.fold != number), held

    def require(self, spec: ModelSpec) -> None:
        """Check that scans were prepared as a specification wants them.

        Raises:
            ScanRefused: ``E_STORE`` naming what differs.
        """
        mine, wanted = _preparation(self.spec), _preparation(spec)
        differing = [
            f"{key} {mine[key]} instead of {wanted[key]}" for key in mine if mine[key] != wanted[key]
        ]
        if differing:
            raise ScanRefused(
                "E_STORE",
                f"{self.path} was prepared for another model: {'; '.join(differing)}.",
                "Make a store with the configuration of this run.",
            )

    def _example(self, n: int) -> Example:
        scan, place = self.scans[n], f"scans/{n:05d}"
        with _reading(self.path) as file:
            voxels = file[f"{place}/tumour"].shape
        return Example(
            scan.id,
            StoredArray(self.path, f"{place}/data", (*scan.shape, len(self.spec.modalities))),
            StoredArray(self.path, f"{place}/labels", scan.shape),
            StoredArray(self.path, f"{place}/tumour", voxels),
            scan.kind,
        )


def write_store(
    path: Path,
    source: TrainingScans,
    folder: Path,
    spec: ModelSpec,
    origins: Mapping[str, Origin],
    report: Callable[[int, int], None],
) -> Store:
    """Prepare all scans of ``folder`` into a new store; a scan that cannot be used is named in it, not kept.

    ``origins`` is what the data set says of its scans, where it says anything. ``report`` is told how many
    of how many are done.

    Raises:
        UsageRefused: ``E_USAGE`` where ``path`` exists.
        ScanRefused: the last scan's refusal, where every scan is refused; ``E_FOLDS``.
        OutputUnwritable: ``E_OUTPUT``.
    """
    if path.exists():
        raise UsageRefused("E_USAGE", f"{path} exists.", "Choose another name, or remove it.")
    known = {scan.id: origins.get(scan.id, Origin(patient_of(scan))) for scan in source.scans}
    folds = folds_of(known)
    with becoming(path) as partial, _writing(partial) as file:
        file.attrs["format"], file.attrs["complete"] = FORMAT, False
        kept, refused = _fill(file, source, spec, known, folds, report)
        file["index"] = json.dumps(
            {
                "spec": json.loads(spec.to_json()),
                "source": str(folder.resolve()),
                "scans": [asdict(scan) for scan in kept],
                "refused": refused,
            }
        )
        file.attrs["complete"] = True
    return Store.open(path)


def folder_of(data: Path) -> Path:
    """Where the scans lie: ``data`` itself, or the folder that the store ``data`` was made from."""
    return Store.open(data).source if data.is_file() else data


def folds_of(origins: Mapping[str, Origin]) -> dict[str, int]:
    """Scan -> fold: the data set's own where it has them, else patients dealt out by a fixed seed.

    Raises:
        ScanRefused: ``E_FOLDS`` where some scans have a fold and others none, or a patient has two.
    """
    given = {origin.patient: origin.fold for origin in origins.values()}
    if any(given[origin.patient] != origin.fold for origin in origins.values()):
        raise ScanRefused("E_FOLDS", "a patient lies in more than one fold.", "Correct the folds.")
    if None in given.values() and set(given.values()) != {None}:
        raise ScanRefused("E_FOLDS", "some patients have a fold and others none.", "Correct the folds.")
    if None in given.values():
        dealt = np.random.default_rng(0).permutation(sorted(given)).tolist()
        given = {patient: 1 + n % FOLDS for n, patient in enumerate(dealt)}
    return {scan: given[origin.patient] or 0 for scan, origin in origins.items()}


def _fill(
    file: h5py.File,
    source: TrainingScans,
    spec: ModelSpec,
    origins: Mapping[str, Origin],
    folds: Mapping[str, int],
    report: Callable[[int, int], None],
) -> tuple[list[StoredScan], dict[str, str]]:
    """Write scan after scan; those kept, and why others are not."""
    kept: list[StoredScan] = []
    refused: dict[str, str] = {}
    for done, scan in enumerate(source.scans, start=1):
        try:
            data, labels, hashes = _prepared(source, scan, spec)
        except ScanRefused as error:
            refused[scan.id] = str(error)
            if len(refused) == len(source.scans):
                raise
            continue
        group = file.create_group(f"scans/{len(kept):05d}")
        edge = THIN_EDGE if spec.thin else EDGE
        chunk = tuple(min(t, n, edge) for t, n in zip(spec.tile, labels.shape, strict=True))
        packed: dict[str, Any] = {
            "compression": "gzip",
            "compression_opts": 1,
            "shuffle": True,
            "fletcher32": True,
        }
        group.create_dataset("data", data=data, chunks=(*chunk, data.shape[-1]), **packed)
        group.create_dataset("labels", data=labels, chunks=chunk, **packed)
        tumour = tumour_voxels(labels).astype(np.uint16)
        group.create_dataset("tumour", data=tumour, **(packed if len(tumour) else {}))
        origin = origins[scan.id]
        shape = (labels.shape[0], labels.shape[1], labels.shape[2])
        kept.append(StoredScan(scan.id, origin.patient, folds[scan.id], origin.kind, shape, hashes))
        report(done, len(source.scans))
    return kept, refused


def _prepared(
    source: TrainingScans, scan: Scan, spec: ModelSpec
) -> tuple[NDArray[np.float32], NDArray[np.uint8], dict[str, str]]:
    """A scan and its truth on the network's grid, and the hashes of their files."""
    volume = source.read(scan)
    prepared = prepare(volume, spec)
    labels = prepare_labels(source.truth(scan, volume.geometry), prepared.placement)
    hashes = {source.file: source.sha256 for source in volume.sources}
    if scan.truth:
        hashes[scan.truth.name] = hashlib.sha256(scan.truth.read_bytes()).hexdigest()
    return prepared.data, labels, hashes


def _preparation(spec: ModelSpec) -> dict[str, Any]:
    """What of a specification decides how a scan is prepared and what its labels mean."""
    return {
        "modalities": [modality.name for modality in spec.modalities],
        "labels": [asdict(label) for label in spec.labels],
        "spacing": spec.spacing,
        "orientation": spec.orientation,
        "normalisation": spec.normalisation,
    }


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[h5py.File]:
    try:
        with h5py.File(path, "x") as file:
            yield file
    except RuntimeError as error:
        # What HDF5 raises where the disk is full when a file is closed.
        raise OSError(str(error)) from error


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[h5py.File]:
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, KeyError, ValueError, TypeError, AttributeError, OverflowError, RuntimeError) as error:
        raise ScanRefused(
            "E_STORE", f"{path} is no whole store: {error}.", "Make it again with brainseg-train store."
        ) from error
