"""Seconds and memory: file to file, the same network in its forms, whole heads and tiles, a folder, a start.

What is compared is timed in turn within one run, and as ratios within each round.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from brainseg_export.model import keras_engine
from brainseg_export.walker import walk
from brainseg_export.witness import convert
from brainseg_runtime.batch import Done, run
from brainseg_runtime.engines.openvino import OpenvinoEngine
from brainseg_runtime.engines.ort import OrtEngine
from brainseg_runtime.preprocess import prepare
from brainseg_runtime.scans import Found, find_scans, read
from brainseg_runtime.segmenter import Segmenter
from brainseg_runtime.tiles import Tiling, predict
from dicoms import Grid, save, study

from benchmarks.flops import conv_flops
from benchmarks.work import gemm_peak, parts

ROUNDS = 5
THREADS = len(os.sched_getaffinity(0))


@pytest.fixture(scope="module")
def graph(model, spec):
    """The clean graph."""
    return walk(model, spec)


@pytest.fixture(scope="module")
def engines(graph, spec):
    """The engines of the runtime on the clean graph."""
    data = graph.SerializeToString()
    return {"openvino": OpenvinoEngine(data, spec, "fp32"), "ort": OrtEngine(data, spec, "fp32")}


@pytest.fixture(scope="module")
def forms(model, spec, graph, engines):
    """The same weights in their forms."""
    return {
        "keras": keras_engine(model),
        "ort, tf2onnx graph": OrtEngine(convert(model, spec).SerializeToString(), spec, "fp32"),
        "ort, clean graph": engines["ort"],
        "openvino, clean graph": engines["openvino"],
        "openvino bf16, clean graph": OpenvinoEngine(graph.SerializeToString(), spec, "bf16"),
    }


def test_file_to_file(benchmark, engines, scan, spec, tmp_path):
    """One 240x240x155 scan of four modalities: read, prepare, infer, restore, write; a warm process."""
    stages = {name: [] for name in engines}

    def one_round():
        for name, engine in engines.items():
            # Not closed: the engine is the next round's too.
            (outcome,) = run(Segmenter(spec, engine), Found((scan,), {}, ()), tmp_path, overwrite=True)
            assert isinstance(outcome, Done), outcome
            stages[name].append(outcome.written.contents["seconds"])

    benchmark.pedantic(one_round, rounds=ROUNDS, warmup_rounds=1)
    benchmark.extra_info["stages"] = {
        name: {stage: round(median(s[stage] for s in seconds[1:]), 3) for stage in seconds[0]}
        for name, seconds in stages.items()
    }


def test_forms(benchmark, forms):
    """One 128^3 tile through each form in turn: times, and ratios within each round."""
    tile = np.random.default_rng(0).normal(size=(1, 128, 128, 128, 4)).astype(np.float32)
    benchmark.extra_info["forms"] = _in_turn(
        benchmark, {name: lambda engine=engine: engine.infer(tile) for name, engine in forms.items()}, "keras"
    )


def test_schemes(benchmark, engines, scan, spec):
    """The network's time on one head: in one pass, in 128^3 tiles half overlapping, in two slabs."""
    data = prepare(read(scan), spec).data
    engine = engines["openvino"]
    tiles = replace(spec, scheme="tiles")
    slabs = Tiling.slabs(data.shape[:3], replace(spec, halo=32), 2)
    works = {
        "one pass": lambda: predict(data, engine, spec),
        "two slabs": lambda: predict(data, engine, spec, tiling=slabs),
        "tiles": lambda: predict(data, engine, tiles),
    }
    benchmark.extra_info["schemes"] = {
        "grid": list(data.shape[:3]),
        "passes": len(Tiling.of(data.shape[:3], tiles)),
        "forms": _in_turn(benchmark, works, "one pass", rounds=3),
    }


SIDES = (64, 96, 128, 160, 192)
"""Voxels along the edge of a cube."""


def test_cost_of_size(benchmark, engines):
    """One pass over cubes of more and more voxels, with each engine."""
    rng = np.random.default_rng(0)
    cubes = {side: rng.normal(size=(1, side, side, side, 4)).astype(np.float32) for side in SIDES}
    seconds = {name: {} for name in engines}

    def one_round():
        for side, cube in cubes.items():
            for name, engine in engines.items():
                seconds[name].setdefault(side, []).append(_seconds(lambda e=engine, c=cube: e.infer(c)))

    benchmark.pedantic(one_round, rounds=3, warmup_rounds=1)
    benchmark.extra_info["size"] = {
        name: {str(side): round(median(values[1:]), 3) for side, values in sides.items()}
        for name, sides in seconds.items()
    }


def test_cost_of_tiles(benchmark, engines, spec):
    """A head of 160x192x160 voxels in half-overlapping tiles of several sizes, and in one pass."""
    head = np.random.default_rng(0).normal(size=(160, 192, 160, 4)).astype(np.float32)
    specs = {str(side): replace(spec, scheme="tiles", tile=(side,) * 3) for side in (64, 96, 128)}
    works = {
        name: lambda tiled=tiled: predict(head, engines["openvino"], tiled)
        for name, tiled in {**specs, "one pass": spec}.items()
    }
    benchmark.extra_info["tile"] = _in_turn(benchmark, works, "one pass", rounds=1)


def test_share_of_the_machine(benchmark, engines, graph):
    """The network's arithmetic a second, beside the best that a matrix product reaches here."""
    grid = (160, 192, 160)
    head = np.random.default_rng(0).normal(size=(1, *grid, 4)).astype(np.float32)
    benchmark.pedantic(lambda: engines["openvino"].infer(head), rounds=ROUNDS, warmup_rounds=1)
    flops = sum(conv_flops(graph, grid).values())
    speed = flops / benchmark.stats.stats.min / 1e9
    benchmark.extra_info["gemm"] = {
        "network": round(speed, 1),
        "peaks": {name: round(value, 1) for name, value in gemm_peak(THREADS).items()},
        "gflop": round(flops / 1e9, 1),
        "parts": parts(graph, grid, THREADS),
        "threads": THREADS,
    }


def test_folder(benchmark, engines, scan, spec, tmp_path):
    """Scans after scans: seconds a scan, against the slowest stage and half the core-seconds.

    Memory is what this process holds after a scan, Keras and all: what counts is that it does not grow.
    """
    count = 20
    for n in range(count):
        for file in scan.files:
            folder = tmp_path / "scans" / f"scan{n:02}"
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(file.path, folder / file.path.name.replace(scan.id, f"scan{n:02}"))
    found = find_scans(tmp_path / "scans", spec)
    written, held, cpu = [], [], []

    def folder():
        before = time.process_time()
        for outcome in run(Segmenter(spec, engines["openvino"]), found, tmp_path / "out", overwrite=True):
            written.append(outcome.written.contents)
            held.append(_resident_mb())
        cpu.append(time.process_time() - before)

    few = {}
    for scans in (1, 2, 4):
        part = replace(found, scans=found.scans[:scans])
        outcomes = run(Segmenter(spec, engines["openvino"]), part, tmp_path / "few", overwrite=True)
        few[str(scans)] = round(_seconds(lambda outcomes=outcomes: list(outcomes)), 3)
    benchmark.pedantic(folder, rounds=1)
    alone = benchmark.stats.stats.min / count
    stages = {s: median(w["seconds"][s] for w in written) for s in written[0]["seconds"]}
    floor = max(max(stages.values()), cpu[0] / count / 2)
    benchmark.extra_info["folder"] = {
        "scans": count,
        "seconds_a_scan": round(alone, 3),
        "half_core_seconds": round(cpu[0] / count / 2, 3),
        "slowest_stage": round(max(stages.values()), 3),
        "times_the_floor": round(alone / floor, 2),
        "resident_mb": [held[1], held[-1]],
        "by_count": {**few, str(count): round(alone * count, 3)},
    }


READ = """
import json, sys, time
from pathlib import Path
from brainseg_runtime.dicom.rules import load_rules
from brainseg_runtime.dicom.study import find_studies
from brainseg_runtime.spec import ModelSpec
spec = ModelSpec.from_json(sys.stdin.read())
began = time.perf_counter()
(scan,) = find_studies([Path(sys.argv[1])], spec, load_rules()).scans
shape = scan.read().data.shape
seconds = time.perf_counter() - began
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"shape": shape, "seconds": seconds, "peak_memory_mb": peak / 1024}))
"""


def test_dicom_study(benchmark, spec, tmp_path):
    """Four classic DICOM series of 240x240x155 voxels, chosen and read in a process of its own."""
    save(study(grid=Grid(240, 240, 155, 1.0, 1.0, 1.0)), tmp_path)
    found = []

    def one_round():
        asked = [sys.executable, "-c", READ, str(tmp_path)]
        done = subprocess.run(asked, input=spec.to_json(), capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout))

    benchmark.pedantic(one_round, rounds=3, warmup_rounds=1)
    benchmark.extra_info["dicom"] = {
        "shape": found[0]["shape"],
        "seconds": round(median(one["seconds"] for one in found[1:]), 2),
        "peak_memory_mb": round(max(one["peak_memory_mb"] for one in found)),
    }


@pytest.mark.parametrize("engine", ["openvino", "ort"])
def test_cold_start(benchmark, root, tmp_path, engine):
    """From the shell to the mask of one scan of the demo, in a process of its own; and its memory."""
    scan = sorted(path for path in (root / "demo" / "unseen").iterdir() if path.is_dir())[0]
    command = [sys.executable, "-c", "from brainseg_runtime.cli import infer_main; infer_main()"]
    asked = [str(scan), "-m", str(root / "bundles" / "demo"), "-o", str(tmp_path), "--engine", engine]
    benchmark.pedantic(
        lambda: subprocess.run([*command, *asked, "--overwrite", "-q"], check=True),
        rounds=3,
        warmup_rounds=1,
    )
    helped = min(_seconds(lambda: subprocess.run([*command, "--help"], stdout=-3)) for _ in range(3))
    benchmark.extra_info["cold"] = {
        "engine": engine,
        "first_mask": round(benchmark.stats.stats.median, 2),
        "help": round(helped, 2),
        "peak_memory_mb": json.loads(next(tmp_path.glob("*_seg.json")).read_bytes())["peak_memory_mb"],
    }


def _resident_mb():
    """Memory that this process holds now."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024


def _in_turn(benchmark, works, reference, rounds=ROUNDS):
    """Seconds of each work and how many times as fast as the reference it is, round by round."""
    seconds = {name: [] for name in works}

    def one_round():
        for name, work in works.items():
            seconds[name].append(_seconds(work))

    benchmark.pedantic(one_round, rounds=rounds, warmup_rounds=1)
    counted = {name: values[1:] for name, values in seconds.items()}
    return {
        name: {
            "seconds": round(median(values), 3),
            "ratio": round(median(r / v for r, v in zip(counted[reference], values, strict=True)), 2),
        }
        for name, values in counted.items()
    }


def _seconds(work):
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
