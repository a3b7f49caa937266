"""What is not installed is refused before any work, with the line that installs it."""

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


def test_what_is_there_is_let_pass():
    """Without a word, and without importing it."""
    require("DICOM", ("json", "numpy"), "brainseg-runtime[dicom]")
