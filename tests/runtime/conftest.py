"""What tests of the runtime share."""

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
