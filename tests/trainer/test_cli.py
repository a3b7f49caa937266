"""What a user types, and how it ends."""

import subprocess
import sys

from brainseg_trainer.cli import app
from typer.testing import CliRunner

HELP = """
import sys
from brainseg_trainer.cli import app
try:
    app(["fit", "--help"])
except SystemExit:
    pass
assert not {"keras", "tensorflow", "matplotlib"} & set(sys.modules)
"""


def test_help_imports_no_framework():
    """``--help`` answers without Keras, TensorFlow or matplotlib."""
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--resume" in done.stdout


def test_a_failure_ends_with_its_status_and_one_line():
    """A refusal is one line on stderr that begins with its code, and the exit status of its kind."""
    main = "from brainseg_trainer.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", main, "figures", "nowhere"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("E_RUN: ")
    assert done.stderr.count("\n") == 1
    assert not done.stdout


def test_synthetic_writes_what_was_asked_for(tmp_path):
    """Count and seed are obeyed; progress goes to stderr, one line of result to stdout."""
    done = CliRunner().invoke(app, ["synthetic", str(tmp_path / "scans"), "--count", "1", "--seed", "3"])
    assert done.exit_code == 0
    assert done.stdout == f"1 scans in {tmp_path / 'scans'}: synthetic-3-0000 to synthetic-3-0000\n"
    assert len(list((tmp_path / "scans" / "synthetic-3-0000").iterdir())) == 5


def test_an_unknown_recipe_is_refused_before_anything_is_made(tmp_path):
    """A configuration that does not exist stops the run with nothing written."""
    done = CliRunner().invoke(app, ["fit", str(tmp_path), "--run", str(tmp_path / "r"), "--config", "no"])
    assert done.exception.exit_status == 2
    assert not (tmp_path / "r").exists()
