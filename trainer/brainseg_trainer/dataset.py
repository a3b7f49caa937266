"""From a folder of scans with truth to batches of tiles.

Scans pass through the runtime's own ``prepare``, so that training sees exactly what the deployed model will
see. What a step sees depends on the seed and the step's number alone, whatever was computed before it.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from brainseg_runtime.errors import ScanRefused
from brainseg_runtime.files import write_atomically
from brainseg_runtime.geometry import Geometry
from brainseg_runtime.nifti import read_labels
from brainseg_runtime.preprocess import prepare, prepare_labels
from brainseg_runtime.resample import GRID_MM
from brainseg_runtime.scans import Scan, find_scans, read
from brainseg_runtime.spec import ModelSpec
from brainseg_runtime.volume import Volume
from numpy.typing import NDArray

from brainseg_trainer.augment import intensity, light, space
from brainseg_trainer.augment.enhancement import unenhanced
from brainseg_trainer.config import Data, TrainConfig
from brainseg_trainer.distances import signed_distances
from brainseg_trainer.example import Example
from brainseg_trainer.label_names import truth_table
from brainseg_trainer.task import masks, type_masks

__all__ = [
    "Batch",
    "TrainingScans",
    "draw_batch",
    "find_training_scans",
    "patient_of",
    "prepare_examples",
    "split",
    "tumour_voxels",
]

Labels = NDArray[np.uint8]
Batch = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Tiles (N, i, j, k, C) and what the loss wants to know of their truth (N, i, j, k, R): see ``loss_of``."""


@dataclass(frozen=True, eq=False)
class TrainingScans:
    """Scans with truth, and how their truth images spell the labels."""

    scans: tuple[Scan, ...]
    table: Labels
    """(256,): a truth voxel's value -> the spec's label."""

    def read(self, scan: Scan) -> Volume:
        """A scan's volume."""
        return read(scan)

    def truth(self, scan: Scan, grid: Geometry) -> Labels:
        """The labels (I, J, K) of a scan that lies on ``grid``.

        Raises:
            ScanRefused: ``E_GEOMETRY_MISMATCH`` where the truth lies on another grid.
        """
        labels, geometry = _read_truth(scan)
        apart = geometry.distance(grid)
        if apart > GRID_MM:
            raise ScanRefused(
                "E_GEOMETRY_MISMATCH",
                f"the truth of scan {scan.id} has {geometry.shape} voxels and lies {apart:.3g} mm from "
                f"the scan, which has {grid.shape}.",
                "Resample the truth to the scan's grid, by nearest neighbour.",
            )
        return self.table[labels]

    def rarest_label(self, scan: Scan) -> tuple[int, int]:
        """How many labels occur in a scan, and voxels of the rarest of them."""
        counts = np.unique(self.table[_read_truth(scan)[0]], return_counts=True)[1]
        return len(counts) - 1, int(counts.min())


def find_training_scans(folder: Path, spec: ModelSpec) -> TrainingScans:
    """All scans of a folder, every one complete and with a truth in the spec's labels.

    In the layouts of nnU-Net and the Medical Segmentation Decathlon, those of ``imagesTr``.

    Raises:
        ScanRefused: the first refusal of a scan; ``E_TRUTH_MISSING``; ``E_LABELS``; ``E_DATASET_JSON``.
    """
    found = find_scans(_images(folder), spec)
    for refusal in found.refused.values():
        raise refusal
    bare = [scan.id for scan in found.scans if scan.truth is None]
    if bare:
        raise ScanRefused(
            "E_TRUTH_MISSING",
            f"{len(bare)} of {len(found.scans)} scans have no label image, first {', '.join(bare[:5])}.",
            "Put <scan>-seg.nii.gz beside each scan, or take these scans out of the folder.",
        )
    with ThreadPoolExecutor() as pool:
        values = set().union(*pool.map(_truth_values, found.scans))
    truths = [scan.truth for scan in found.scans if scan.truth]
    return TrainingScans(found.scans, truth_table(truths, values, spec))


def split(
    scans: Sequence[Scan], patients: Mapping[str, str], held_out: float, seed: int
) -> tuple[tuple[Scan, ...], tuple[Scan, ...]]:
    """Scans to train on and scans to hold out; all scans of a patient fall on one side.

    ``patients``: scan -> patient.

    Raises:
        ScanRefused: ``E_TOO_FEW_SCANS`` with fewer than two patients.
    """
    names = sorted({patients[scan.id] for scan in scans})
    if len(names) < 2:
        raise ScanRefused(
            "E_TOO_FEW_SCANS",
            f"{len(scans)} scans of {len(names)} patient cannot be split.",
            "Give the scans of two patients or more.",
        )
    shuffled = np.random.default_rng(seed).permutation(names).tolist()
    count = min(max(1, round(held_out * len(names))), len(names) - 1)
    held = set(shuffled[:count])
    return (
        tuple(scan for scan in scans if patients[scan.id] not in held),
        tuple(scan for scan in scans if patients[scan.id] in held),
    )


def prepare_examples(
    source: TrainingScans,
    scans: Sequence[Scan],
    spec: ModelSpec,
    cache: Path,
    report: Callable[[int, int], None],
    kinds: Mapping[str, str] | None = None,
) -> list[Example]:
    """Bring scans onto the network's grid and keep them in ``cache``; what lies there is taken as it is.

    ``report`` is told how many of how many are done; ``kinds``: scan -> type of tumour.

    Raises:
        ScanRefused: where a scan or its truth cannot be used.
    """
    examples = []
    for done, scan in enumerate(scans, start=1):
        paths = cache / f"{scan.id}.npy", cache / f"{scan.id}.labels.npy"
        if not all(path.exists() for path in paths):
            volume = source.read(scan)
            prepared = prepare(volume, spec)
            labels = prepare_labels(source.truth(scan, volume.geometry), prepared.placement)
            _store(paths[0], prepared.data)
            _store(paths[1], labels)
        data, labels = (np.load(path, mmap_mode="r") for path in paths)
        examples.append(Example(scan.id, data, labels, tumour_voxels(labels), (kinds or {}).get(scan.id, "")))
        report(done, len(scans))
    return examples


def draw_batch(
    examples: Sequence[Example],
    spec: ModelSpec,
    config: TrainConfig,
    step: int,
    *,
    altered: bool = True,
    share: range | None = None,
) -> Batch:
    """The batch of a step, ``altered`` by augmentation or not; only a ``share`` of it where one is given.

    Every scan is seen once before any is seen again.
    """
    images, truths = [], []
    for n in share or range(config.training.batch):
        turn, place = divmod(step * config.training.batch + n, len(examples))
        order = np.random.default_rng([config.seed, ORDER, turn]).permutation(len(examples))
        rng = np.random.default_rng([config.seed, TILE, step, n])
        image, labels = _draw_tile(examples[order[place]], config.data, spec, rng, altered)
        images.append(image)
        truths.append(_truth(labels, spec, config, examples[order[place]].kind, step))
    return np.stack(images), np.stack(truths)


ORDER, TILE = 1, 2
"""Streams of random numbers that must not meet."""

TUMOUR_VOXELS = 2000
"""Per label and scan: enough to centre tiles on, few enough to hold for thousands of scans."""


def _draw_tile(
    example: Example, data: Data, spec: ModelSpec, rng: np.random.Generator, altered: bool
) -> tuple[NDArray[np.float32], Labels]:
    """A tile of an example and its labels, altered as the configuration says."""
    tile = data.tile
    room = np.maximum(np.array(example.labels.shape) - tile, 0)
    start = rng.integers(room + 1)
    if rng.random() < data.tumour and example.tumour.shape[0]:
        centre = example.tumour[int(rng.integers(example.tumour.shape[0]))]
        start = np.clip(centre - np.array(tile) // 2, 0, room)
    first = (int(start[0]), int(start[1]), int(start[2]))
    channels = example.data.shape[-1]
    plain = altered and data.unenhanced > 0 and rng.random() < data.unenhanced
    if altered and data.augmentation == "full":
        image, labels = space.sample(example, first, tile, data.spacing, space.draw(rng, data.spacing))
        if plain:
            image, labels = unenhanced(image, labels, spec)
        return intensity.apply(intensity.draw(rng, channels), image), labels
    image, labels = space.cut(example, first, tile)
    if plain:
        image, labels = unenhanced(image, labels, spec)
    if altered and data.augmentation == "light":
        return light.apply(light.draw(rng, channels), image, labels)
    return image, labels


def _truth(labels: Labels, spec: ModelSpec, config: TrainConfig, kind: str, step: int) -> NDArray[np.float32]:
    """Masks, for the boundary loss distances, and for a model that tells types the type: see ``loss_of``."""
    parts = [masks(labels, spec)]
    if config.loss.kind == "boundary":
        # Their weight grows from 0: at first everything is far from where it belongs (Kervadec et al. 2019).
        weight = np.float32(step / config.training.steps)
        parts.append(weight * signed_distances(parts[0], config.data.spacing))
    if spec.types:
        parts.append(type_masks(labels, spec, kind))
    return np.concatenate(parts, axis=-1)


def tumour_voxels(labels: Labels) -> NDArray[np.intp]:
    """Voxels (n, 3) of a label image (i, j, k) to centre tiles on: see ``Example.tumour``."""
    chosen = []
    for value in np.unique(labels[labels > 0]):
        where = np.flatnonzero(labels == value)
        # Evenly spread; a small label repeats its voxels, so that every label weighs the same.
        chosen.append(where[np.linspace(0, len(where) - 1, TUMOUR_VOXELS).astype(np.intp)])
    flat = np.concatenate(chosen) if chosen else np.empty(0, np.intp)
    return np.stack(np.unravel_index(flat, labels.shape), axis=-1)


def _images(folder: Path) -> Path:
    """Where the scans with truth are: other folders of a data set hold scans without."""
    training = folder / "imagesTr"
    return training if training.is_dir() and (folder / "dataset.json").is_file() else folder


def _truth_values(scan: Scan) -> set[int]:
    return set(np.unique(_read_truth(scan)[0]).tolist())


def _read_truth(scan: Scan) -> tuple[Labels, Geometry]:
    if scan.truth is None:
        raise ScanRefused(
            "E_TRUTH_MISSING", f"scan {scan.id} has no label image.", "Put <scan>-seg.nii.gz beside it."
        )
    return read_labels(scan.truth, scan.root, thin=scan.thin)


_BRATS = re.compile(r"(.*BraTS.*\D\d{5})[-_]\d{3}", re.IGNORECASE)


def patient_of(scan: Scan) -> str:
    """Whose scan it is: BraTS 2023 names one patient's visits 00005-000, 00005-001."""
    match = _BRATS.fullmatch(scan.id)
    return match[1] if match else scan.id


def _store(path: Path, array: NDArray[np.generic]) -> None:
    content = io.BytesIO()
    np.save(content, array)
    write_atomically(path, content.getvalue())
