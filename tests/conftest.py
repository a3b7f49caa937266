"""What all tests share."""

import os
import signal
import sys
from pathlib import Path

import pytest


@pytest.fixture
def typed(monkeypatch, capfd):
    """Run a program in this process as if it was typed: (status, stdout, stderr)."""
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def call(main, *words):
        monkeypatch.setattr(sys, "argv", list(map(str, words)))
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capfd.readouterr()

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


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
