"""What tests of the runtime share."""

import signal
import sys

import pytest
from brainseg_runtime import cli


@pytest.fixture
def brainseg(monkeypatch, capsys):
    """Run ``brainseg`` in this process: (status, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["brainseg", *map(str, arguments)])
        monkeypatch.setattr("signal.signal", lambda *_: None)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr()

    return call


@pytest.fixture
def infer(monkeypatch, capfd):
    """Run ``brainseg-infer`` in this process: (status, stdout, stderr)."""
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["brainseg-infer", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.infer_main()
        out, err = capfd.readouterr()
        return ended.value.code, out, err

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)
