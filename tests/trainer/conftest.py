"""Keras once for all tests of the trainer, what it needs to keep quiet, and a few scans to train on."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

pytest.importorskip("tensorflow", reason="brainseg-trainer[cpu] is not installed (CI installs it)")

# Keras turns TensorFlow's variables into arrays in a way that numpy 2 will end.
KERAS = "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"


def pytest_collection_modifyitems(items):
    """Let Keras' own warning pass, in these tests only."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings(KERAS))


def quiet(*_):
    """A report that nobody reads."""


@pytest.fixture(scope="session")
def scans_folder(tmp_path_factory):
    """Four synthetic scans with truth, which tests read and never change."""
    from brainseg_trainer.synthetic import write_scans

    folder = tmp_path_factory.mktemp("scans")
    write_scans(folder, 4, 7, quiet)
    return folder


@pytest.fixture(scope="session")
def small_config():
    """A run of seconds: a coarse grid, a real preset, few steps."""
    from brainseg_trainer.config import from_toml

    return from_toml(
        """
        name = "small"
        seed = 5
        [network]
        preset = "s2d"
        width = 4
        depth = 3
        [data]
        spacing = [4.0, 4.0, 4.0]
        tile = [32, 32, 32]
        validation = 0.25
        tumour = 0.5
        [training]
        steps = 8
        batch = 2
        learning_rate = 1e-2
        warmup = 2
        weight_decay = 1e-2
        validate_every = 4
        checkpoint_seconds = 0
        """
    )
