"""What tests of the runtime share."""

from functools import partial

import pytest
from brainseg_runtime import cli


@pytest.fixture
def brainseg(typed):
    """Run ``brainseg`` in this process: (status, stdout, stderr)."""
    return partial(typed, cli.main, "brainseg")


@pytest.fixture
def infer(typed):
    """Run ``brainseg-infer`` in this process: (status, stdout, stderr)."""
    return partial(typed, cli.infer_main, "brainseg-infer")
