"""What a hospital installs: the runtime alone, in an environment of its own."""

import json
import re
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from brainseg_runtime.errors import CODES
from brainseg_runtime.quality import FLAGS

ROOT = Path(__file__).parents[2]
UV = Path(sys.executable).parent / "uv"


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A virtual environment made by uv with ``runtime[cpu]`` and nothing else, in the locked versions."""
    folder = tmp_path_factory.mktemp("runtime")
    subprocess.run([UV, "venv", "-q", "--python", sys.executable, folder], check=True)
    install = [UV, "pip", "install", "-q", "--python", folder, "-c", ROOT / "requirements.lock"]
    subprocess.run([*install, f"{ROOT / 'runtime'}[cpu]"], check=True)
    return folder


def run(environment, *command):
    done = subprocess.run([environment / "bin" / command[0], *command[1:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_runtime_weighs_at_most_200_mb(environment):
    """Everything in the environment, as it lies on disk."""
    size = sum(path.stat().st_size for path in environment.rglob("*") if not path.is_symlink())
    assert size <= 200e6, f"{size / 1e6:.0f} MB"


def test_the_runtime_brings_no_training_framework(environment):
    """Neither the framework nor scipy nor onnx come along, and importing loads no engine."""
    names = ("keras", "tensorflow", "torch", "onnx", "scipy", "h5py", "matplotlib")
    code = (
        "import importlib.util, json, sys, brainseg_runtime; from brainseg_runtime import load;"
        f"print(json.dumps([[n for n in {names} if importlib.util.find_spec(n)],"
        "'onnxruntime' in sys.modules]))"
    )
    assert json.loads(run(environment, "python", "-c", code)) == [[], False]


def test_every_package_is_accounted_for(environment):
    """SECURITY.md says of each package in the environment why it is there."""
    done = subprocess.run(
        [UV, "pip", "list", "--python", environment, "--format", "json"], capture_output=True, check=True
    )
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8").split("## What the runtime stands on")[1]
    told = {name.strip() for row in page.splitlines() for name in row.strip("| ").split("|")[0].split(",")}
    there = {package["name"] for package in json.loads(done.stdout)}
    assert there - told - {"brainseg-runtime", "pip", "setuptools", "wheel"} == set()


def test_every_hazard_has_a_test_and_known_codes():
    """The table of hazards names files that are there, and codes that brainseg can give."""
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(tests/[\w/.]+)`", page))
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).is_file()] == []
    assert set(re.findall(r"`([EQ]_[A-Z_]+)`", page)) <= {*CODES, *FLAGS}


def test_the_commands_are_there(environment):
    """Both entry points answer."""
    assert "Exit status" in run(environment, "brainseg-infer", "--help")
    assert "infer" in run(environment, "brainseg", "--help")


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path):
    """No tests, no data, no trainer; the type marker is in, and so are the GPU's kernels as they are here."""
    subprocess.run([UV, "build", "-q", "--wheel", "-o", tmp_path, ROOT / "runtime"], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    listed = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", wheel], capture_output=True, text=True, check=True
    ).stdout
    files = [line.split()[0] for line in listed.splitlines()[1:]]
    assert "brainseg_runtime/py.typed" in files
    with ZipFile(wheel) as opened:
        shipped = opened.read("brainseg_runtime/kernels/scan.ptx")
    assert shipped == (ROOT / "runtime/brainseg_runtime/kernels/scan.ptx").read_bytes()
    assert all(name.startswith(("brainseg_runtime/", "brainseg_runtime-")) for name in files)
    assert wheel.stat().st_size < 300_000
