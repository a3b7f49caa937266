"""Seconds: file to file per stage, and the same network in its forms, interleaved in one run."""

import time
from statistics import median

import numpy as np
import pytest
from brainseg_export.model import keras_engine
from brainseg_export.walker import walk
from brainseg_export.witness import convert
from brainseg_runtime.batch import Done, run
from brainseg_runtime.engines.ort import OrtEngine
from brainseg_runtime.scans import Found
from brainseg_runtime.segmenter import Segmenter

ROUNDS = 7


@pytest.fixture(scope="module")
def forms(model, spec):
    """The same weights in three forms."""
    return {
        "keras": keras_engine(model),
        "tf2onnx graph": OrtEngine(convert(model, spec).SerializeToString(), spec, "fp32"),
        "clean graph": OrtEngine(walk(model, spec).SerializeToString(), spec, "fp32"),
    }


def test_file_to_file(benchmark, forms, scan, spec, tmp_path):
    """One 240x240x155 scan of four modalities: read, prepare, infer, restore, write."""
    stages = []
    with Segmenter(spec, forms["clean graph"]) as segmenter:

        def once():
            (outcome,) = run(segmenter, Found((scan,), {}, ()), tmp_path, overwrite=True)
            assert isinstance(outcome, Done), outcome
            stages.append(outcome.written.contents["seconds"])

        benchmark.pedantic(once, rounds=3, warmup_rounds=1)
    counted = stages[1:]
    benchmark.extra_info["stages"] = {
        stage: round(median(seconds[stage] for seconds in counted), 3) for stage in counted[0]
    }


def test_forms(benchmark, forms):
    """One 128^3 tile through each form in turn: times, and ratios within each round."""
    tile = np.random.default_rng(0).normal(size=(1, 128, 128, 128, 4)).astype(np.float32)
    seconds = {name: [] for name in forms}

    def one_round():
        for name, engine in forms.items():
            started = time.perf_counter()
            engine.infer(tile)
            seconds[name].append(time.perf_counter() - started)

    benchmark.pedantic(one_round, rounds=ROUNDS, warmup_rounds=1)
    counted = {name: values[1:] for name, values in seconds.items()}
    benchmark.extra_info["forms"] = {
        name: {
            "seconds": round(median(values), 3),
            "times_keras": round(median(k / v for k, v in zip(counted["keras"], values, strict=True)), 2),
        }
        for name, values in counted.items()
    }
