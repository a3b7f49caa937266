"""Keras once for all tests of the export, and what it needs to keep quiet."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

pytest.importorskip("tensorflow", reason="brainseg-export[cpu] is not installed (CI installs it)")

# Keras turns TensorFlow's variables into arrays in a way that numpy 2 will end.
KERAS = "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"


def pytest_collection_modifyitems(items):
    """Let Keras' own warning pass, in these tests only."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings(KERAS))
