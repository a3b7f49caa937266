"""What is not installed is refused before any work, with the line that installs it."""

import sys

import pytest
from brainseg_runtime.errors import EngineUnavailable
from brainseg_runtime.extras import require


def test_what_lacks_is_named_with_its_remedy():
    """One module of two is enough to lack; the status is that of a missing engine."""
    with pytest.raises(
        EngineUnavailable, match=r"json and no_such_module.*brainseg-runtime\[dicom\]"
    ) as told:
        require("DICOM", ("json", "no_such_module"), "brainseg-runtime[dicom]")
    assert told.value.code == "E_EXTRA_MISSING"
    assert told.value.exit_status == 5


def test_what_is_there_is_let_pass(tmp_path, monkeypatch, capfd):
    """Without a word, and without importing it."""
    (tmp_path / "brainseg_test_extra.py").write_text("raise AssertionError")
    monkeypatch.syspath_prepend(tmp_path)
    require("DICOM", ("json", "brainseg_test_extra"), "brainseg-runtime[dicom]")
    assert "brainseg_test_extra" not in sys.modules
    assert capfd.readouterr() == ("", "")
