"""Measure one GPU and keep the figures: ``python -m benchmarks.gpu BUNDLE --json FILE``."""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path

import onnx
import torch
from brainseg_runtime.bundle import Bundle
from brainseg_runtime.gpu import find
from brainseg_runtime.scans import Scan, find_scans
from brainseg_trainer.backend import set_backend

from benchmarks.brain import write_scan
from benchmarks.gpu.passes import SHAPES, passes
from benchmarks.gpu.rates import rates
from benchmarks.gpu.scans import folders, one_by_one

PACKAGES = ("onnxruntime-gpu", "torch", "nvidia-cudnn-cu13", "cuda-bindings", "numpy")


def main() -> None:
    """What is asked for, one section after the other; the file is written anew after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--scans", type=Path, help="real scans, beside a synthetic one of BraTS' size")
    parser.add_argument("--masks", type=Path, help="a folder to keep masks in, to hold them against Keras")
    parser.add_argument("--compile", action="store_true", help="torch.compile, too: a minute and more")
    parser.add_argument("--full", action="store_true", help="the full-size s2d, too: needs Keras")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/gpu/latest.json"))
    asked = parser.parse_args()
    spec = Bundle.open(asked.bundle).spec
    found: dict[str, object] = {"facts": facts(), "rates": rates()}
    with tempfile.TemporaryDirectory() as room:
        write_scan(Path(room, "synthetic"))
        scans: list[Scan] = list(find_scans(Path(room, "synthetic"), spec).scans)
        real = list(find_scans(asked.scans, spec).scans) if asked.scans else []
        shipped = onnx.load(asked.bundle / "model.onnx")
        sections: dict[str, Callable[[], object]] = {
            "scans": lambda: one_by_one(asked.bundle, scans + real, asked.masks),
            "folders": lambda: folders(asked.bundle, scans[0], Path(room)),
            "shipped": lambda: passes(shipped, spec, SHAPES, asked.compile),
        }
        if asked.full:
            sections["full"] = lambda: passes(full(), spec, SHAPES, False)
        for name, section in sections.items():
            started = time.perf_counter()
            found[name] = section()
            print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)  # noqa: T201
            asked.json.write_text(json.dumps(found, indent=1))


def full() -> onnx.ModelProto:
    """The clean graph of the full-size ``s2d``, its weights random."""
    # PyTorch's GPU memory is not to be shared, and on a GPU's machine there seldom is a TensorFlow.
    os.environ["JAX_PLATFORMS"] = "cpu"
    set_backend("jax")
    import keras
    from brainseg_export.model import to_logits
    from brainseg_export.walker import walk
    from brainseg_trainer.config import load
    from brainseg_trainer.networks import build_network, divisor
    from brainseg_trainer.task import glioma_spec

    keras.utils.set_random_seed(0)
    config = load("glioma")
    spec = glioma_spec(config, divisor(config.network))
    return walk(to_logits(build_network(config.network, 4, 3), spec), spec)


def facts() -> dict[str, object]:
    """Which GPU and which versions, and when."""
    gpu = find("cuda:0")
    return {
        "date": str(date.today()),
        "gpu": gpu.name,
        "capability": list(gpu.capability),
        "driver": gpu.driver,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "cudnn": torch.backends.cudnn.version(),
        **{name: version(name) for name in PACKAGES},
    }


if __name__ == "__main__":
    main()
