"""One training run, from a folder of scans to a folder that the exporter takes."""

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
from brainseg_runtime.errors import EngineUnavailable, OutputUnwritable, UsageRefused
from brainseg_runtime.scans import Scan
from brainseg_runtime.spec import ModelSpec

from brainseg_trainer.config import TrainConfig
from brainseg_trainer.dataset import Batch, draw_batch, prepare_examples
from brainseg_trainer.evaluate import Score, dice_where_present, evaluate, mean_dice, metrics
from brainseg_trainer.example import Example
from brainseg_trainer.figures import draw_curves
from brainseg_trainer.learner import Learner, precision_of
from brainseg_trainer.losses import loss_of
from brainseg_trainer.networks import build_network, save_network
from brainseg_trainer.networks.cost import require_room
from brainseg_trainer.run import RunFolder
from brainseg_trainer.simulation import require_jax
from brainseg_trainer.sources import DataSet, open_data
from brainseg_trainer.tensorboard import Board
from brainseg_trainer.workers import Workers, join

__all__ = ["Report", "fit"]

Draw = Callable[..., Batch]
"""A step, and whether its batch is ``altered`` by augmentation -> the batch."""
Report = Callable[[str, int, int, str], None]
"""Is told what is being done, how much of it is done, of how much, and a remark."""

RECALIBRATION_BATCHES = 20
"""For batch norm: the mean over as many batches hardly varies."""
SIMULATED_BATCHES = 100
"""The same where heads are simulated, no two alike: from 20 to 140 mean Dice still moved by 0.01 to 0.02."""
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
    best: dict[str, Any] = field(default_factory=dict)
    """Of the scores so far: ``step``, ``mean`` over regions of ``dice_where_present``, ``metrics``."""
    waited: int = 0
    """Scores since the best one."""

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

    def add_scores(self, scores: Sequence[Score]) -> bool:
        """Add scores to the last row; whether they are the best so far."""
        means = mean_dice(scores)
        self.rows[-1].update({f"dice_{region}": dice for region, dice in means.items()})
        mean = float(np.mean(list(dice_where_present(scores).values())))
        is_best = not self.best or mean > self.best["mean"]
        self.waited = 0 if is_best else self.waited + 1
        if is_best:
            self.best = {"step": self.step, "mean": mean, "metrics": metrics(scores)}
        return is_best


def fit(
    data: Path,
    run: RunFolder,
    report: Report,
    board: Board | None = None,
    workers: Workers = Workers(),  # noqa: B008  (a frozen value)
) -> None:
    """Train as the run's configuration says, or go on from its checkpoint, and fill its folder.

    ``data`` is a folder of scans, or a store that was made from one; scans are held out in the folder.
    ``board`` is shown every row of the history. Each of several ``workers`` calls this with the same data
    and the same run, which the first one writes.

    The network that is kept is the one that scored best on them, so its score there flatters it a little.

    Raises:
        ScanRefused: where a scan, its truth, or the number of scans does not do.
        BundleInvalid: ``E_SPEC`` where the tile does not suit the network.
        UsageRefused: ``E_RUN`` where the run was begun on other scans; ``E_USAGE``.
        BudgetExceeded: ``E_MEMORY`` where a step would not fit.
        EngineUnavailable: ``E_ENGINE_FAILED`` where training diverges, ``E_EXTRA_MISSING``.
        OutputUnwritable: ``E_OUTPUT``.
    """
    config = run.read_config()
    # First of all: whatever else touches Keras' backend makes it too late to meet.
    join(workers, config.training.batch)
    require_room(config)
    data_set = open_data(data, config)
    training, held_out = data_set.divided(config)
    keras.utils.set_random_seed(config.seed)
    spec = data_set.spec
    losses = [loss_of(config.loss, spec.activation, types) for types in (len(spec.types), 0)]
    learner = Learner(_network(config, spec), config.training, *losses)
    try:
        _Session(run, config, data_set, training, held_out, learner, report, board, workers).go()
    # What JAX raises where the connection to another process breaks.
    except (RuntimeError, ValueError) as error:
        if workers.count == 1:
            raise
        raise EngineUnavailable(
            "E_ENGINE_FAILED",
            f"another worker was lost: {str(error).splitlines()[0]}.",
            "Start all of them again with --resume.",
        ) from error


def _network(config: TrainConfig, spec: ModelSpec) -> keras.Model:
    with precision_of(config.training.precision):
        return build_network(config.network, len(spec.modalities), spec.label_channels, len(spec.types))


@dataclass(frozen=True)
class _Session:
    """One process's part of a run."""

    run: RunFolder
    config: TrainConfig
    data: DataSet
    training: Sequence[Scan]
    held_out: Sequence[Scan]
    learner: Learner
    report: Report
    board: Board | None
    workers: Workers

    def go(self) -> None:
        """Begin or resume, train to the last step, and leave everything that a run leaves."""
        state = self._begin()
        self._check_held_out()
        self._train(state, self._drawing())
        self._finish(state)

    def _begin(self) -> _State:
        digest = _digest(self.training, self.held_out)
        if not self.run.checkpoint.exists():
            if self.workers.is_first:
                self.run.write_spec(self.data.spec)
                _require_room(self.run.path, self.learner.bytes)
            return _State(digest)
        state = _State(**self.learner.restore(self.run.checkpoint))
        if state.data != digest:
            raise UsageRefused(
                "E_RUN",
                f"{self.run.path} was begun on other scans.",
                "Give the scans that it was begun on, or start another run.",
            )
        return state

    def _check_held_out(self) -> None:
        """Read what is scored later: a file that is damaged must be known before hours are spent."""
        for done, scan in enumerate(self.held_out, start=1):
            volume = self.data.scans.read(scan)
            self.data.scans.truth(scan, volume.geometry)
            self._tell("checking held-out scans", done, len(self.held_out))

    def _examples(self) -> list[Example]:
        if self.data.store:
            return self.data.store.examples([scan.id for scan in self.training])
        return prepare_examples(
            self.data.scans,
            self.training,
            self.data.spec,
            self.run.cache_of(self.workers.number),
            partial(self._tell, "preparing scans"),
            self.data.kinds,
        )

    def _drawing(self) -> Draw:
        """What draws the batch of a step."""
        if self.data.simulation:
            require_jax()
            if self.workers.count > 1:
                raise UsageRefused(
                    "E_USAGE", "simulated heads are drawn by one worker.", "Start it alone, on all devices."
                )
            from brainseg_trainer.simulation.scans import SimulatedBatches

            return SimulatedBatches(self.data.simulation, self.data.spec, self.config)
        share = self.workers.share(self.config.training.batch)
        return partial(draw_batch, self._examples(), self.data.spec, self.config, share=share)

    def _train(self, state: _State, draw: Draw) -> None:
        """Take the steps that are left, until the last or until scores no longer rise."""
        training = self.config.training
        began = time.monotonic() - state.seconds
        saved = time.monotonic()
        for images, truth in self._batches(draw, state):
            rate = self.learner.learning_rate
            loss = self.learner.step(images, truth)
            state.losses.append(loss)
            state.step += 1
            state.seconds = time.monotonic() - began
            scored = self._is_last(state) or state.step % training.validate_every == 0
            if scored or state.step % max(1, training.steps // ROWS) == 0:
                state.add_row(rate)
            if scored:
                self._validate(state, draw)
            if self.board and state.rows and state.rows[-1]["step"] == state.step:
                self.board(state.rows[-1])
            due = self._is_last(state) or time.monotonic() - saved >= training.checkpoint_seconds
            if due and self.workers.is_first:
                self.learner.save(self.run.checkpoint, asdict(state))
                self.run.write_history(state.rows)
                saved = time.monotonic()
            self._tell("training", state.step, training.steps, f"loss {loss:.3f}")

    def _is_last(self, state: _State) -> bool:
        training = self.config.training
        return state.step >= training.steps or 0 < training.patience <= state.waited

    def _validate(self, state: _State, draw: Draw) -> None:
        """Score on the held-out scans, and keep the network if it is the best so far."""
        spec, scans, count = self.data.spec, self.data.scans, RECALIBRATION_BATCHES
        if self.data.simulation:
            count = max(count, min(SIMULATED_BATCHES, state.step))
        # The same ones each time, so that scores differ by the weights alone.
        batches = (draw(n, altered=False)[0] for n in range(count))
        with self.learner.as_scored(batches) as network:
            tell = partial(self._tell, "scoring scans")
            scores = evaluate(network, spec, scans, self.held_out, tell, self.data.kinds)
            if state.add_scores(scores) and self.workers.is_first:
                save_network(network, self.run.best)

    def _finish(self, state: _State) -> None:
        """Write what the run is for; the model last."""
        if not self.workers.is_first:
            return
        self.run.write_history(state.rows)
        self.run.write_metrics(
            "validation",
            {
                **state.best["metrics"],
                "trained_on": [scan.id for scan in self.training],
                "best_step": state.best["step"],
                "steps": state.step,
                "seconds": round(state.seconds, 1),
                "keras": keras.__version__,
                "backend": keras.backend.backend(),
            },
        )
        draw_curves(state.rows, self.run.figures / "curves.png")
        self.run.write_parity(self.data.scans, self.held_out)
        self.run.keep_best()
        self.run.clean()

    def _batches(self, draw: Draw, state: _State) -> Iterator[Batch]:
        """The batch of every step that is left, each drawn while the step before is computed."""
        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(draw, state.step)
            while not self._is_last(state):
                batch = coming.result()
                coming = pool.submit(draw, state.step + 1)
                yield batch

    def _tell(self, stage: str, done: int, total: int, remark: str = "") -> None:
        self.report(stage, done, total, remark)


def _require_room(folder: Path, state: int) -> None:
    """Check that a run's files will fit on the disk, before hours are spent on them.

    ``state`` in bytes: the weights and the optimiser's.
    """
    # A checkpoint is written beside the one that it replaces, and so is the network.
    needed, free = 4 * state, shutil.disk_usage(folder).free
    if free < needed:
        raise OutputUnwritable(
            "E_OUTPUT",
            f"{folder} has {free / 1e6:.0f} MB left, a run of this network takes {needed / 1e6:.0f} MB.",
            "Free some space, or choose another folder.",
        )


def _digest(training: Sequence[Scan], held_out: Sequence[Scan]) -> str:
    """What tells one data set from another: every file's name and size, and the side it is on."""
    digest = hashlib.sha256()
    for side, scans in (("train", training), ("hold out", held_out)):
        for scan in scans:
            for path in (*(file.path for file in scan.files), scan.truth):
                size = path.stat().st_size if path else 0
                digest.update(f"{side}/{scan.id}/{path.name if path else ''}/{size}\n".encode())
    return digest.hexdigest()
