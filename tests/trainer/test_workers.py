"""Several workers, several devices: the same training as one, and an end when one of them is lost."""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from brainseg_runtime.errors import UsageRefused
from brainseg_trainer.config import to_toml
from brainseg_trainer.networks import load_network
from brainseg_trainer.workers import Workers, join

pytest.importorskip("jax", reason="brainseg-trainer[jax] is not installed (CI installs it)")

TEN_STEPS = """
import sys
from brainseg_trainer.backend import set_backend
set_backend(sys.argv[1])
from dataclasses import replace
import keras
import numpy as np
from brainseg_trainer.config import Loss, Network, load
from brainseg_trainer.learner import Learner
from brainseg_trainer.losses import loss_of
from brainseg_trainer.networks import build_network
from brainseg_trainer.workers import Workers, join
workers = Workers(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
join(workers, 4)
training = replace(load("demo").training, steps=10, warmup=0, optimiser="sgd", learning_rate=1e-2)
network = build_network(Network("s2d", 2, 2, norm="batch"), 4, 3)
start = np.random.default_rng(1)
network.set_weights([start.uniform(0.1, 0.3, w.shape) for w in network.get_weights()])
learner = Learner(network, training, loss_of(Loss(), "sigmoid"))
rng = np.random.default_rng(0)
for step in range(10):
    images = rng.normal(1, 2, (4, 8, 8, 8, 4)).astype("float32")
    truth = (images[..., :3] > 2).astype("float32")
    mine = list(workers.share(4))
    learner.step(images[mine], truth[mine])
np.savez(sys.argv[5], *[keras.ops.convert_to_numpy(v) for v in network.variables])
"""
MAIN = "from brainseg_trainer.cli import main; main()"


def free_address():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{found.getsockname()[1]}"


def start(code, *arguments, devices=1):
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)],
        env={**os.environ, "XLA_FLAGS": flags},
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*children):
    for child in children:
        _, err = child.communicate(timeout=300)
        assert child.returncode == 0, err[-2000:]


def test_two_workers_or_two_devices_train_as_one_does(tmp_path):
    """After ten steps weights, and batch norm's statistics, are those of one device with the whole batch."""
    address = free_address()
    one = start(TEN_STEPS, "jax", 1, 0, "", tmp_path / "one.npz")
    two = [start(TEN_STEPS, "jax", 2, n, address, tmp_path / f"worker{n}.npz") for n in range(2)]
    devices = start(TEN_STEPS, "jax", 1, 0, "", tmp_path / "devices.npz", devices=2)
    tensorflow = start(TEN_STEPS, "tensorflow", 1, 0, "", tmp_path / "tensorflow.npz")
    finish(one, *two, devices, tensorflow)
    expected = np.load(tmp_path / "one.npz")
    for name, apart in (("worker0", 1e-5), ("worker1", 1e-5), ("devices", 1e-5), ("tensorflow", 1e-4)):
        found = np.load(tmp_path / f"{name}.npz")
        assert len(found.files) == len(expected.files) > 20
        for key in expected.files:
            np.testing.assert_allclose(found[key], expected[key], rtol=apart, atol=apart, err_msg=name)


@pytest.fixture
def config(small_config, tmp_path):
    """A run of JAX with statistics of single tiles and a loss of single tiles."""
    made = replace(
        small_config,
        network=replace(small_config.network, width=2, depth=2, norm="instance"),
        data=replace(small_config.data, tile=(16, 16, 16)),
        loss=replace(small_config.loss, over="tile"),
        training=replace(
            small_config.training, steps=100, validate_every=100, optimiser="sgd", backend="jax", patience=1
        ),
    )
    path = tmp_path / "config.toml"
    path.write_text(to_toml(made))
    return path


def fit(scans, run, config, *more):
    return start(MAIN, "fit", scans, "--run", run, "--config", config, *more)


def test_a_lost_worker_ends_the_run_and_both_go_on(scans_folder, config, tmp_path):
    """One of two workers is killed: the other ends with a code; resumed, they make the model of one alone."""
    alone = fit(scans_folder, tmp_path / "one", config)
    run = tmp_path / "two"

    def both(*more):
        shared = ("--workers", 2, "--address", free_address(), *more)
        return [fit(scans_folder, run, config, *shared, "--worker", n) for n in range(2)]

    first, second = both()
    ends = time.monotonic() + 200
    while not (run / "checkpoint.npz").exists():
        assert time.monotonic() < ends
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    second.send_signal(signal.SIGKILL)
    _, err = first.communicate(timeout=200)
    second.communicate()
    assert first.returncode == 5, err
    assert "E_ENGINE_FAILED: another worker was lost" in err
    finish(alone, *both("--resume"))
    one, two = (load_network(path / "model.keras") for path in (tmp_path / "one", run))
    for a, b in zip(one.variables, two.variables, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, err_msg=a.path)
    assert not (run / "cache").exists()


def test_workers_need_jax():
    """TensorFlow's processes do not meet: several workers are refused before anything begins."""
    with pytest.raises(UsageRefused, match="JAX"):
        join(Workers(2, 0, "127.0.0.1:1"), 4)


def test_every_tile_is_drawn_by_one_worker():
    """The shares of all workers are the batch, in order."""
    shares = [list(Workers(3, n).share(12)) for n in range(3)]
    assert [n for share in shares for n in share] == list(range(12))
