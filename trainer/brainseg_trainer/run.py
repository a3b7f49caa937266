"""The folder that a training run leaves: what is in it, and how a run begins or goes on."""

import csv
import io
import json
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from brainseg_runtime.errors import OutputUnwritable, UsageRefused
from brainseg_runtime.files import write_atomically
from brainseg_runtime.nifti import write_image, write_labels
from brainseg_runtime.scans import Scan
from brainseg_runtime.spec import ModelSpec
from numpy.typing import NDArray

from brainseg_trainer.config import TrainConfig, from_toml, to_toml
from brainseg_trainer.dataset import TrainingScans
from brainseg_trainer.task import BRATS_WORDS

__all__ = ["Row", "RunFolder"]

Row = Mapping[str, float]
"""A line of ``history.csv``."""

PARITY_SCANS = 3


@dataclass(frozen=True)
class RunFolder:
    """``runs/<name>/``; ``model.keras`` is written last, so its presence says that the run is done."""

    path: Path

    @property
    def model(self) -> Path:
        """The network, as Keras saves it."""
        return self.path / "model.keras"

    @property
    def spec(self) -> Path:
        """The ``ModelSpec``."""
        return self.path / "spec.json"

    @property
    def history(self) -> Path:
        """Loss and scores over the steps."""
        return self.path / "history.csv"

    @property
    def metrics(self) -> Path:
        """Scores of the finished network, scan by scan."""
        return self.path / "metrics.json"

    @property
    def figures(self) -> Path:
        """Pictures."""
        return self.path / "figures"

    @property
    def parity(self) -> Path:
        """A few held-out scans, for the exporter to prove its graphs on."""
        return self.path / "parity"

    @property
    def config(self) -> Path:
        """The ``TrainConfig``, whole."""
        return self.path / "config.toml"

    @property
    def checkpoint(self) -> Path:
        """The state of an unfinished run."""
        return self.path / "checkpoint.npz"

    @property
    def best(self) -> Path:
        """The network of an unfinished run that scored best."""
        return self.path / "best.keras"

    def cache_of(self, worker: int) -> Path:
        """A worker's prepared scans, while the run is unfinished."""
        return self.path / "cache" / str(worker)

    def begin(self, config: TrainConfig) -> None:
        """Claim the folder for a new run.

        Raises:
            UsageRefused: ``E_RUN`` where a run already lies there.
        """
        if self.config.exists():
            raise UsageRefused(
                "E_RUN",
                f"{self.path} already holds a run.",
                "Choose another folder, or continue it with --resume.",
            )
        write_atomically(self.config, to_toml(config).encode())

    def wait(self, seconds: float = 60.0) -> None:
        """Wait until the first of several workers has begun the run or found it.

        Raises:
            UsageRefused: ``E_RUN`` where it does not.
        """
        ends = time.monotonic() + seconds
        while not self.config.exists():
            if time.monotonic() > ends:
                raise UsageRefused(
                    "E_RUN", f"nobody began {self.path}.", "Start worker 0 on the same folder."
                )
            time.sleep(0.1)

    def go_on(self, config: TrainConfig | None) -> None:
        """Check that a run lies here that can be gone on with, begun with ``config`` if one is given.

        Raises:
            UsageRefused: ``E_RUN`` where there is none, or one of another configuration.
        """
        begun = self.read_config()
        if config is not None and config != begun:
            raise UsageRefused(
                "E_RUN",
                f"{self.path} was begun with another configuration.",
                "Leave out --config, or start another run.",
            )

    def read_config(self) -> TrainConfig:
        """The configuration of the run that lies here.

        Raises:
            UsageRefused: ``E_RUN`` where there is none.
        """
        return from_toml(self._read(self.config))

    def read_spec(self) -> ModelSpec:
        """The specification of the run that lies here.

        Raises:
            UsageRefused: ``E_RUN`` where there is none.
        """
        return ModelSpec.from_json(self._read(self.spec))

    def write_spec(self, spec: ModelSpec) -> None:
        """Write ``spec.json``."""
        write_atomically(self.spec, spec.to_json().encode())

    def read_history(self) -> list[dict[str, float]]:
        """The rows of ``history.csv``; a score that was not taken is left out of its row.

        Raises:
            UsageRefused: ``E_RUN`` where there is none.
        """
        lines = csv.DictReader(io.StringIO(self._read(self.history)))
        return [{key: float(value) for key, value in line.items() if value} for line in lines]

    def write_history(self, rows: Sequence[Row]) -> None:
        """Write ``history.csv``, a column for whatever any row holds."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.history, text.getvalue().encode())

    def read_metrics(self) -> dict[str, Any]:
        """The sections of ``metrics.json``.

        Raises:
            UsageRefused: ``E_RUN`` where there is none.
        """
        sections: dict[str, Any] = json.loads(self._read(self.metrics))
        return sections

    def write_metrics(self, section: str, scores: Mapping[str, Any]) -> None:
        """Write one section of ``metrics.json`` and keep the others."""
        sections = self.read_metrics() if self.metrics.exists() else {}
        sections[section] = scores
        write_atomically(self.metrics, (json.dumps(sections, indent=1) + "\n").encode())

    def write_parity(self, source: TrainingScans, scans: Iterable[Scan]) -> None:
        """Copy a few scans under BraTS names: with the most labels, and the most voxels of the rarest one."""
        for scan in sorted(scans, key=source.rarest_label, reverse=True)[:PARITY_SCANS]:
            volume = source.read(scan)
            folder = self.parity / scan.id
            for file in scan.files:
                word = BRATS_WORDS.get(file.modality, file.modality)
                image = _compact(volume.data[..., scan.modalities.index(file.modality)])
                write_image(folder / f"{scan.id}-{word}.nii.gz", image, volume.geometry)
            truth = source.truth(scan, volume.geometry)
            write_labels(folder / f"{scan.id}-seg.nii.gz", truth, volume.geometry)

    def keep_best(self) -> None:
        """Make the network that scored best the run's.

        Raises:
            OutputUnwritable: ``E_OUTPUT``.
        """
        try:
            self.best.replace(self.model)
        except OSError as error:
            raise OutputUnwritable(
                "E_OUTPUT", f"{self.model} cannot be written: {error}.", "Check the folder, then --resume."
            ) from error

    def clean(self) -> None:
        """Remove what only an unfinished run needs."""
        shutil.rmtree(self.path / "cache", ignore_errors=True)
        self.checkpoint.unlink(missing_ok=True)

    def _read(self, path: Path) -> str:
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageRefused(
                "E_RUN", f"{path} cannot be read: {error}.", "Name the folder of a finished run."
            ) from error


def _compact(image: NDArray[np.float32]) -> NDArray[np.float32] | NDArray[np.int16]:
    """As int16 where nothing is lost: most scanners write that."""
    limits = np.iinfo(np.int16)
    if limits.min <= image.min() and image.max() <= limits.max and (image == np.rint(image)).all():
        return image.astype(np.int16)
    return image
