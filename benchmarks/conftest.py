"""What is measured: the full-size default network, a brain of BraTS size, and where the real ones are."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import keras
import pytest
from brainseg_export.model import to_logits
from brainseg_runtime.scans import Scan, find_scans
from brainseg_trainer.config import load
from brainseg_trainer.networks import build_network, divisor
from brainseg_trainer.task import glioma_spec

from benchmarks.brain import write_scan
from benchmarks.report import PACKAGES

CONFIG = load("glioma")


@pytest.fixture(scope="session")
def spec():
    """The spec of the full-size network ``s2d``."""
    return glioma_spec(CONFIG, divisor(CONFIG.network))


@pytest.fixture(scope="session")
def model(spec):
    """The full-size ``s2d`` with random weights, on which its speed does not depend.

    Its last bias says that nothing is tumour: the specks of noise would be another matter than a lesion.
    """
    keras.utils.set_random_seed(0)
    network = build_network(CONFIG.network, 4, 3)
    kernel, bias = network.layers[-1].get_weights()
    network.layers[-1].set_weights([kernel, bias - 100])
    return to_logits(network, spec)


@pytest.fixture(scope="session")
def scan(tmp_path_factory, spec) -> Scan:
    """A synthetic scan stretched to BraTS' grid, 240x240x155 voxels of 1 mm, four int16 ``.nii.gz``."""
    folder = tmp_path_factory.mktemp("scans") / "synthetic"
    write_scan(folder)
    return find_scans(folder, spec).scans[0]


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository, where ``make demo`` leaves its bundle."""
    return Path(__file__).parent.parent


def pytest_benchmark_update_machine_info(config, machine_info):
    """Say how many cores there really are, and which versions were measured."""
    del machine_info["node"]  # the file is kept with the code; whose machine it was is nobody's business
    machine_info["usable_cores"] = len(os.sched_getaffinity(0))
    machine_info["python"] = platform.python_version()
    machine_info["versions"] = {name: version(name) for name in PACKAGES}
