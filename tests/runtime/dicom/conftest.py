"""What the tests of DICOM share."""

import sys
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("decoders run under POSIX limits", allow_module_level=True)

collect_ignore_glob = []
try:
    import highdicom  # noqa: F401
except ImportError:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def folder(tmp_path) -> Path:
    """Where a study is put."""
    return tmp_path / "study"
