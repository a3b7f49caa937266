"""What all tests share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real scans, which no checkout holds."""
    beside = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    root = Path(os.environ.get("BRAINSEG_DATA", beside))
    if not root.is_dir():
        pytest.skip(f"no real scans in {root}; BRAINSEG_DATA names another folder")
    return root
