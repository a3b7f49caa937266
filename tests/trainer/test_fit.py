"""A whole run: what it leaves, and that nothing tells a resumed one from an undisturbed one."""

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from brainseg_runtime.engines.base import EngineIdentity
from brainseg_runtime.errors import OutputUnwritable, ScanRefused, UsageRefused
from brainseg_runtime.overlap import dice
from brainseg_runtime.scans import find_scans
from brainseg_runtime.segmenter import Segmenter
from brainseg_trainer.config import to_toml
from brainseg_trainer.crossvalidation import cross_validate
from brainseg_trainer.dataset import find_training_scans
from brainseg_trainer.evaluate import Score, dice_where_present, evaluate, mean_dice
from brainseg_trainer.fit import fit
from brainseg_trainer.keras_engine import keras_engine
from brainseg_trainer.learner import Learner
from brainseg_trainer.networks import load_network
from brainseg_trainer.run import RunFolder
from brainseg_trainer.sources import open_data
from brainseg_trainer.synthetic import write_scans
from brainseg_trainer.tensorboard import board_in

from .conftest import quiet

PLAIN_KERAS = """
import sys
import keras
import numpy as np
network = keras.models.load_model(sys.argv[1], safe_mode=True)
given = np.load(sys.argv[2])
np.testing.assert_allclose(network(given["tile"]), given["logits"], rtol=1e-5, atol=1e-5)
assert not [name for name in sys.modules if name.startswith("brainseg")]
"""


@pytest.fixture(scope="module")
def rich_config(small_config):
    """A run whose state has all there is to save: dropout, a running mean, momenta, patience."""
    return replace(
        small_config,
        network=replace(small_config.network, dropout=0.2, auxiliary=1),
        data=replace(small_config.data, augmentation="full"),
        training=replace(small_config.training, ema=0.5, clip=1.0, schedule="poly", patience=5),
    )


@pytest.fixture(scope="module")
def finished(scans_folder, rich_config, tmp_path_factory):
    """An undisturbed run."""
    run = RunFolder(tmp_path_factory.mktemp("runs") / "small")
    run.begin(rich_config)
    fit(scans_folder, run, quiet)
    return run


def test_a_run_leaves_what_the_exporter_takes(finished, rich_config):
    """Every file of a run's folder is there, none of an unfinished run's, and they agree with each other."""
    assert sorted(path.name for path in finished.path.iterdir()) == [
        *("config.toml", "figures", "history.csv", "metrics.json", "model.keras", "parity", "spec.json")
    ]
    spec = finished.read_spec()
    assert finished.read_config() == rich_config
    assert spec.divisor == (8, 8, 8)
    assert spec.tile == rich_config.data.tile
    rows = finished.read_history()
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert [row["step"] for row in rows if "dice_WT" in row] == [4, 8]
    metrics = finished.read_metrics()["validation"]
    assert len(metrics["trained_on"]) == 3
    assert len(metrics["scans"]) == 1
    assert not set(metrics["trained_on"]) & set(metrics["scans"])
    scored = next(row for row in rows if row["step"] == metrics["best_step"])
    for region, value in metrics["mean_dice"].items():
        assert scored[f"dice_{region}"] == pytest.approx(value)
    assert (finished.figures / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_parity_scans_are_held_out_and_whole(finished, scans_folder):
    """The scans left for parity are held-out ones, under BraTS names, the same voxels and truth."""
    spec = finished.read_spec()
    left = find_training_scans(finished.parity, spec)
    origin = find_training_scans(scans_folder, spec)
    (scan,) = left.scans
    assert scan.id in finished.read_metrics()["validation"]["scans"]
    (source,) = (s for s in origin.scans if s.id == scan.id)
    ours, theirs = left.read(scan), origin.read(source)
    np.testing.assert_array_equal(ours.data, theirs.data)
    assert ours.geometry.distance(theirs.geometry) == 0
    truth = left.truth(scan, ours.geometry)
    np.testing.assert_array_equal(truth, origin.truth(source, theirs.geometry))
    assert set(np.unique(truth)) == {0, 1, 2, 3}
    assert scan.truth.name == f"{scan.id}-seg.nii.gz"
    assert find_scans(finished.parity, spec).scans[0].files[3].path.name == f"{scan.id}-t2f.nii.gz"


def test_the_model_needs_keras_alone(finished, tmp_path):
    """A process that never imports brainseg loads the model in safe mode and computes the same logits."""
    tile = np.random.default_rng(0).normal(size=(1, 16, 24, 8, 4)).astype(np.float32)
    logits = np.array(load_network(finished.model)(tile))
    np.savez(tmp_path / "given.npz", tile=tile, logits=logits)
    done = subprocess.run(
        [sys.executable, "-c", PLAIN_KERAS, finished.model, tmp_path / "given.npz"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert load_network(finished.model).compiled is False


def test_scores_come_from_the_deployed_pipeline(finished, scans_folder):
    """A score is the Dice of what the runtime's Segmenter answers with the network as its engine."""
    spec = finished.read_spec()
    network = load_network(finished.model)
    source = find_training_scans(scans_folder, spec)
    scan = source.scans[0]
    (score,) = evaluate(network, spec, source, [scan], quiet)
    volume = source.read(scan)
    with Segmenter(spec, keras_engine(network)) as segmenter:
        answer = segmenter.segment(volume)
    truth = source.truth(scan, volume.geometry)
    assert score.dice["WT"] == dice(answer.mask("WT"), truth > 0)
    assert mean_dice([score]) == score.dice


def test_a_scan_without_a_region_has_no_say_in_what_is_chosen():
    """One voxel would decide between 0 and 1 there; it counts where no scan has the region."""
    present = Score("a", {"WT": 0.8, "ET": 1.0}, {"WT": (10.0, 9.0), "ET": (0.0, 0.0)})
    absent = Score("b", {"WT": 0.0, "ET": 0.0}, {"WT": (0.0, 0.1), "ET": (0.0, 0.1)})
    assert dice_where_present([present, absent]) == {"WT": 0.8, "ET": 0.5}


def test_the_engine_says_what_it_runs_on(finished):
    """The engine names Keras, its backend and its version, and gives the network's own logits."""
    network = load_network(finished.model)
    engine = keras_engine(network)
    assert engine.identity == EngineIdentity(
        "keras", keras.backend.backend(), engine.identity.device, "fp32", keras.__version__
    )
    tile = np.random.default_rng(0).normal(size=(2, 16, 8, 8, 4)).astype(np.float32)
    np.testing.assert_allclose(engine.infer(tile), network(tile, training=False), rtol=1e-4, atol=1e-5)


def steps_done(run):
    """How far a run's checkpoint is."""
    with np.load(run.checkpoint) as arrays:
        return json.loads(arrays["state"].tobytes())["step"]


@pytest.mark.parametrize("step", [2, 5], ids=["before a score", "after a score"])
def test_a_killed_run_goes_on_as_if_nothing_had_been(finished, scans_folder, rich_config, tmp_path, step):
    """Killed in the middle and resumed, training ends with the same weights, bit for bit, and history."""
    run = RunFolder(tmp_path / "runs" / "killed")
    config = tmp_path / "small.toml"
    config.write_text(to_toml(rich_config))
    command = [sys.executable, "-c", "from brainseg_trainer.cli import main; main()", "fit", scans_folder]
    process = subprocess.Popen(
        [*command, "--run", run.path, "--config", config],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (run.checkpoint.exists() and steps_done(run) >= step):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not run.model.exists()

    fewer = shutil.copytree(scans_folder, tmp_path / "fewer")
    shutil.rmtree(fewer / "synthetic-7-0000")
    with pytest.raises(UsageRefused, match="other scans"):
        fit(fewer, run, quiet)

    fit(scans_folder, run, quiet)
    resumed, undisturbed = load_network(run.model), load_network(finished.model)
    for a, b in zip(resumed.weights, undisturbed.weights, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=a.path)
    for one, two in zip(run.read_history(), finished.read_history(), strict=True):
        assert one | {"seconds": 0} == two | {"seconds": 0}


def test_a_run_is_not_written_over(finished, rich_config):
    """A folder that holds a run is not begun again, nor gone on with under another configuration."""
    with pytest.raises(UsageRefused, match="--resume") as refusal:
        finished.begin(rich_config)
    assert refusal.value.code == "E_RUN"
    finished.go_on(rich_config)
    with pytest.raises(UsageRefused, match="another configuration"):
        finished.go_on(replace(rich_config, seed=99))


def test_there_is_nothing_to_go_on_with(tmp_path):
    """An empty folder cannot be resumed."""
    with pytest.raises(UsageRefused, match="E_RUN"):
        RunFolder(tmp_path).go_on(None)


def run_of(config, data, path):
    run = RunFolder(path)
    run.begin(config)
    fit(data, run, quiet)
    return run


def test_training_stops_when_scores_no_longer_rise(scans_folder, small_config, tmp_path):
    """After ``patience`` scores without a better one the run ends, with the network that scored best."""
    still = replace(small_config.training, learning_rate=1e-12, validate_every=1, patience=2)
    run = run_of(replace(small_config, training=still), scans_folder, tmp_path / "run")
    assert [row["step"] for row in run.read_history()] == [1, 2, 3]
    found = run.read_metrics()["validation"]
    assert (found["best_step"], found["steps"]) == (1, 3)


def test_the_network_that_is_kept_scores_as_the_run_says(scans_folder, small_config, tmp_path):
    """Scored again from its file, the network has the scores of the best step, not of the last."""
    wild = replace(small_config.training, steps=6, learning_rate=0.3, warmup=0, validate_every=1)
    run = run_of(replace(small_config, training=wild), scans_folder, tmp_path / "run")
    found = run.read_metrics()["validation"]
    means = [np.mean([row[f"dice_{r}"] for r in ("WT", "TC", "ET")]) for row in run.read_history()]
    assert found["best_step"] == 1 + int(np.argmax(means)) < 6
    spec = run.read_spec()
    source = find_training_scans(scans_folder, spec)
    scans = [scan for scan in source.scans if scan.id in found["scans"]]
    again = evaluate(load_network(run.model), spec, source, scans, quiet)
    assert mean_dice(again) == pytest.approx(found["mean_dice"])


def test_a_damaged_held_out_scan_is_known_before_the_first_step(scans_folder, small_config, tmp_path):
    """What would only be read at the first score is read at the start, and named before a step is taken."""
    data = shutil.copytree(scans_folder, tmp_path / "scans")
    held_out = open_data(data, small_config).divided(small_config)[1][0]
    path = held_out.files[3].path
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ScanRefused, match=path.name):
        run_of(small_config, data, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoint.npz").exists()


def test_a_full_disk_is_known_before_the_first_step(scans_folder, small_config, tmp_path, monkeypatch):
    """A run whose files will not fit is refused at the start, with what it takes and what there is."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(OutputUnwritable, match="0 MB left") as refusal:
        run_of(small_config, scans_folder, tmp_path / "run")
    assert refusal.value.code == "E_OUTPUT"


def test_a_checkpoint_that_cannot_be_written_costs_nothing_that_was_done(
    scans_folder, small_config, tmp_path, monkeypatch
):
    """The disk fills in the middle: the run ends, the checkpoint before stays, and it goes on from there."""
    run = RunFolder(tmp_path / "run")
    run.begin(small_config)
    save, saved = Learner.save, []

    def fill(self, path, state):
        if len(saved) == 3:
            raise OutputUnwritable("E_OUTPUT", "no space left on device.", "Free some space.")
        saved.append(state["step"])
        save(self, path, state)

    monkeypatch.setattr(Learner, "save", fill)
    with pytest.raises(OutputUnwritable):
        fit(scans_folder, run, quiet)
    assert steps_done(run) == saved[-1] == 3
    monkeypatch.undo()
    fit(scans_folder, run, quiet)
    assert run.read_metrics()["validation"]["steps"] == 8


def test_events_for_tensorboard_are_the_history(scans_folder, small_config, tmp_path):
    """TensorBoard's own reader finds each row's values at its step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = RunFolder(tmp_path / "run")
    run.begin(replace(small_config, training=replace(small_config.training, steps=4)))
    with board_in(tmp_path / "events") as board:
        fit(scans_folder, run, quiet, board)
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    rows = run.read_history()
    assert set(events.Tags()["tensors"]) == {key for row in rows for key in row} - {"step"}
    for name in ("loss", "learning_rate", "dice_ET"):
        found = {e.step: float(e.tensor_proto.float_val[0]) for e in events.Tensors(name)}
        assert found == pytest.approx({row["step"]: row[name] for row in rows if name in row}, rel=1e-6)


@pytest.mark.parametrize("patients", [4, 5])
def test_cross_validation_holds_out_every_patient_once(patients, tmp_path, small_config):
    """Five runs hold out each patient once, what was done is not done again; four patients are refused."""
    write_scans(tmp_path / "scans", patients, 11, quiet)
    config = replace(small_config, training=replace(small_config.training, steps=2, warmup=0))
    if patients == 4:
        with pytest.raises(ScanRefused) as refusal:
            cross_validate(tmp_path / "scans", tmp_path / "runs", config, quiet)
        assert refusal.value.code == "E_TOO_FEW_SCANS"
        assert not (tmp_path / "runs").exists()
        return
    result = cross_validate(tmp_path / "scans", tmp_path / "runs", config, quiet)
    assert sorted(result.dice) == [f"synthetic-11-{n:04d}" for n in range(5)]
    assert sorted(result.folds.values()) == [1, 2, 3, 4, 5]
    for scan, fold in result.folds.items():
        metrics = RunFolder(tmp_path / "runs" / f"fold{fold}").read_metrics()["validation"]
        assert scan not in metrics["trained_on"]
        assert metrics["scans"][scan]["dice"] == result.dice[scan]
    mean = np.mean([scores["WT"] for scores in result.dice.values()])
    assert result.summary("WT").mean == pytest.approx(mean)
    began = (tmp_path / "runs" / "fold3" / "model.keras").stat().st_mtime_ns
    assert cross_validate(tmp_path / "scans", tmp_path / "runs", config, quiet) == result
    assert (tmp_path / "runs" / "fold3" / "model.keras").stat().st_mtime_ns == began
