"""No kernel reads or writes beyond what it was given: under a compiler's own watch, on odd shapes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .machines import compile_kernels

CHILD = """
import sys
from types import SimpleNamespace
import numpy as np
sys.path.insert(0, sys.argv[2])
from machines import Cpu
from brainseg_runtime.kernels.proof import Summing
from brainseg_runtime.resident import Resident
from brainseg_runtime.segmenter import Segmenter
from toys import toy_geometry, toy_spec, toy_volume

class Short(Cpu):
    def zeros(self, size):
        return super().zeros(size - (4 if self.short and size > 4 else 0))

card = Short(sys.argv[1])
card.short = sys.argv[3] == "short"
for changes in (
    {"tile": (4, 8, 4), "overlap": 0.3},
    {"scheme": "whole", "divisor": (8, 8, 8), "spacing": (1.3, 0.7, 2.0)},
    {"normalisation": "none", "tile": (8, 4, 8), "spacing": (2.5, 2.5, 2.5)},
    {"scheme": "whole", "divisor": (1, 1, 1), "spacing": (20.0, 1.0, 0.8)},
    {"activation": "softmax", "channels": (0, 1, 2, 3)},
):
    spec = toy_spec(**changes)
    for shape in ((5, 11, 7), (13, 6, 9)):
        engine = Summing(spec, card)
        segmenter = Segmenter(spec, engine, batch=3, gpu_memory=10**12, resident=Resident(engine, card))
        plan = segmenter.segment(toy_volume(toy_geometry(shape))).record["plan"]
        assert plan["on_gpu"].startswith("scan"), plan
print("done")
"""


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """The kernels compiled to be watched, and what a child needs for that in its environment."""
    compiler = shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("there is no gcc for Linux")
    asked = subprocess.run(
        [compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    )
    runtime = Path(asked.stdout.strip())
    if not runtime.is_absolute():
        pytest.skip("gcc has no libasan")
    flags = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    made = compile_kernels(compiler, tmp_path_factory.mktemp("watched") / "kernels.so", *flags)
    # Python itself leaks what it holds at its end, and its own allocator would hide the ends of arrays.
    environment = {
        **os.environ,
        "LD_PRELOAD": str(runtime.resolve()),
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    return made, environment


def child(watched, how):
    library, environment = watched
    command = [sys.executable, "-c", CHILD, library, Path(__file__).parent, how]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_kernels_keep_to_what_they_are_given(watched):
    """Tiles larger than the grid, single slices, ragged passes, grids finer and coarser than the scan."""
    done = child(watched, "whole")
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-3000:]


def test_the_watch_sees_a_value_too_far(watched):
    """Memory that is 4 bytes too short is noticed, so the other test means something."""
    done = child(watched, "short")
    assert done.returncode != 0
    assert "AddressSanitizer" in done.stderr
