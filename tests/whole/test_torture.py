"""The trials of docs/reliability.md in a shortened form: the same functions, smaller numbers."""

from importlib.util import find_spec

import pytest

pytest.importorskip("pydicom")
pytest.importorskip("onnx")
from torture import TRIALS
from torture.rows import Setup
from toys import toy_bundle, toy_volume, write_scan

SHARES = {"flips": 0.1, "soak": 0.06}
"""How much of the full numbers; what is not here takes 0.01. Files made by hand are always all tried."""

# Keras turns TensorFlow's variables into arrays in a way that numpy 2 will end.
pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
    ),
    pytest.mark.skipif(
        not all(map(find_spec, ("tensorflow", "SimpleITK", "cryptography", "openvino"))),
        reason="trainer, export or extras are not installed (CI installs all)",
    ),
]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A bundle and two scans."""
    folder = tmp_path_factory.mktemp("torture")
    for n in range(2):
        write_scan(folder / "scans" / f"p{n}", toy_volume(seed=n))
    toy_bundle(folder / "bundle")
    return folder


@pytest.mark.parametrize("name", TRIALS)
def test_every_goal_is_met(name, small, tmp_path, data_root_or_none):
    """No line of the table misses its goal."""
    setup = Setup(tmp_path, small / "bundle", small / "scans", SHARES.get(name, 0.01), data_root_or_none)
    rows = list(TRIALS[name][1](setup))
    assert rows
    assert [row for row in rows if row.held is False] == []
