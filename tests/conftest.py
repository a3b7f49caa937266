"""What all tests share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real scans, which no checkout holds."""
    root = _data_root()
    if not root.is_dir():
        pytest.skip(f"no real scans in {root}; BRAINSEG_DATA names another folder")
    return root


@pytest.fixture(scope="session")
def data_root_or_none() -> Path | None:
    """The same for what can do without."""
    root = _data_root()
    return root if root.is_dir() else None


def _data_root() -> Path:
    beside = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    return Path(os.environ.get("BRAINSEG_DATA", beside))
