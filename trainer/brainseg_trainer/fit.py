"""One training run, from a folder of scans to a folder that the exporter takes."""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import keras
import numpy as np
from brainseg_runtime.errors import ScanRefused, UsageRefused
from brainseg_runtime.scans import Scan
from brainseg_runtime.spec import ModelSpec

from brainseg_trainer.config import TrainConfig
from brainseg_trainer.dataset import (
    Batch,
    Example,
    TrainingScans,
    draw_batch,
    find_training_scans,
    prepare_examples,
    split,
)
from brainseg_trainer.evaluate import Score, evaluate, mean_dice, metrics
from brainseg_trainer.figures import draw_curves
from brainseg_trainer.learner import Learner
from brainseg_trainer.networks import build_network, divisor, save_network
from brainseg_trainer.run import RunFolder
from brainseg_trainer.store import Store
from brainseg_trainer.task import glioma_spec

__all__ = ["Report", "fit"]

Report = Callable[[str, int, int, str], None]
"""Is told what is being done, how much of it is done, of how much, and a remark."""

RECALIBRATION_BATCHES = 20
"""For batch norm: the mean over as many batches hardly varies."""
ROWS = 100
"""Lines of ``history.csv``."""


@dataclass
class _State:
    """How far a run is; saved with every checkpoint."""

    data: str
    """Digest of the scans that it trains on and holds out."""
    step: int = 0
    seconds: float = 0.0
    """Spent on steps and scores, over all sessions."""
    losses: list[float] = field(default_factory=list)
    """Since the last row."""
    rows: list[dict[str, float]] = field(default_factory=list)
    """Of ``history.csv``."""

    def add_row(self, learning_rate: float) -> None:
        """Sum up the steps since the last row."""
        self.rows.append(
            {
                "step": self.step,
                "seconds": round(self.seconds, 2),
                "learning_rate": learning_rate,
                "loss": float(np.mean(self.losses)),
            }
        )
        self.losses.clear()


def fit(data: Path, run: RunFolder, report: Report) -> None:
    """Train as the run's configuration says, or go on from its checkpoint, and fill its folder.

    ``data`` is a folder of scans, or a store that was made from one; scans are held out in the folder.

    Raises:
        ScanRefused: where a scan, its truth, or the number of scans does not do.
        BundleInvalid: ``E_SPEC`` where the tile does not suit the network.
        UsageRefused: ``E_RUN`` where the run was begun on other scans.
        EngineUnavailable: ``E_ENGINE_FAILED`` where training diverges.
        OutputUnwritable: ``E_OUTPUT``.
    """
    config = run.read_config()
    spec = glioma_spec(config, divisor(config.network))
    store = _store(data, spec)
    source = find_training_scans(store.source if store else data, spec)
    if store:
        source = replace(source, scans=_stored_scans(store, source))
    training, held_out = split(source.scans, config.data.validation, config.seed)
    run.write_spec(spec)
    keras.utils.set_random_seed(config.seed)
    network = build_network(config.network, len(spec.modalities), spec.output_channels)
    learner = Learner(network, config.training)
    _Session(run, config, spec, source, store, training, held_out, learner, report).go()


@dataclass(frozen=True)
class _Session:
    """One process's part of a run."""

    run: RunFolder
    config: TrainConfig
    spec: ModelSpec
    source: TrainingScans
    store: Store | None
    training: Sequence[Scan]
    held_out: Sequence[Scan]
    learner: Learner
    report: Report

    def go(self) -> None:
        """Begin or resume, train to the last step, and leave everything that a run leaves."""
        state = self._begin()
        examples = self._examples()
        self._train(state, examples)
        self._finish(state, examples)

    def _examples(self) -> list[Example]:
        if self.store:
            return self.store.examples([scan.id for scan in self.training])
        return prepare_examples(
            self.source, self.training, self.spec, self.run.cache, partial(self._tell, "preparing scans")
        )

    def _begin(self) -> _State:
        digest = _digest(self.training, self.held_out)
        if not self.run.checkpoint.exists():
            return _State(digest)
        state = _State(**self.learner.restore(self.run.checkpoint))
        if state.data != digest:
            raise UsageRefused(
                "E_RUN",
                f"{self.run.path} was begun on other scans.",
                "Give the scans that it was begun on, or start another run.",
            )
        return state

    def _train(self, state: _State, examples: Sequence[Example]) -> None:
        """Take the steps that are left."""
        training = self.config.training
        began = time.monotonic() - state.seconds
        saved = time.monotonic()
        for images, masks in self._batches(examples, state.step):
            rate = self.learner.learning_rate
            loss = self.learner.step(images, masks)
            state.losses.append(loss)
            state.step += 1
            state.seconds = time.monotonic() - began
            last = state.step == training.steps
            scored = state.step % training.validate_every == 0 and not last
            if last or scored or state.step % max(1, training.steps // ROWS) == 0:
                state.add_row(rate)
            if scored:
                state.rows[-1].update(_columns(self._score(examples, state.step)))
            if last or time.monotonic() - saved >= training.checkpoint_seconds:
                self.learner.save(self.run.checkpoint, asdict(state))
                self.run.write_history(state.rows)
                saved = time.monotonic()
            self._tell("training", state.step, training.steps, f"loss {loss:.3f}")

    def _finish(self, state: _State, examples: Sequence[Example]) -> None:
        """Score the network, and write what the run is for; the model last."""
        scores = self._score(examples, state.step)
        state.rows[-1].update(_columns(scores))
        self.run.write_history(state.rows)
        self.run.write_metrics(
            "validation",
            {
                **metrics(scores),
                "trained_on": [scan.id for scan in self.training],
                "steps": state.step,
                "seconds": round(state.seconds, 1),
                "keras": keras.__version__,
                "backend": keras.backend.backend(),
            },
        )
        draw_curves(state.rows, self.run.figures / "curves.png")
        self.run.write_parity(self.source, self.held_out)
        save_network(self.learner.network, self.run.model)
        self.run.clean()

    def _score(self, examples: Sequence[Example], step: int) -> list[Score]:
        """Scores on the held-out scans, batch norm's statistics measured anew before."""
        count = RECALIBRATION_BATCHES
        self.learner.recalibrate(
            draw_batch(examples, self.spec, self.config, step + n, altered=False)[0] for n in range(count)
        )
        return evaluate(
            self.learner.network, self.spec, self.source, self.held_out, partial(self._tell, "scoring scans")
        )

    def _batches(self, examples: Sequence[Example], first: int) -> Iterator[Batch]:
        """The batch of every step from ``first`` on, each drawn while the step before is computed."""
        draw = partial(draw_batch, examples, self.spec, self.config)
        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(draw, first)
            for step in range(first, self.config.training.steps):
                batch = coming.result()
                coming = pool.submit(draw, step + 1)
                yield batch

    def _tell(self, stage: str, done: int, total: int, remark: str = "") -> None:
        self.report(stage, done, total, remark)


def _store(data: Path, spec: ModelSpec) -> Store | None:
    """The store that ``data`` is, if it is a file and no folder."""
    if not data.is_file():
        return None
    store = Store.open(data)
    store.require(spec)
    return store


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


def _columns(scores: Sequence[Score]) -> dict[str, float]:
    """Mean Dice per region as columns of ``history.csv``."""
    return {f"dice_{region}": dice for region, dice in mean_dice(scores).items()}


def _digest(training: Sequence[Scan], held_out: Sequence[Scan]) -> str:
    """What tells one data set from another: every file's name and size, and the side it is on."""
    digest = hashlib.sha256()
    for side, scans in (("train", training), ("hold out", held_out)):
        for scan in scans:
            for path in (*(file.path for file in scan.files), scan.truth):
                size = path.stat().st_size if path else 0
                digest.update(f"{side}/{scan.id}/{path.name if path else ''}/{size}\n".encode())
    return digest.hexdigest()
