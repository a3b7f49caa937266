"""Agreement of a trained model's forms with Keras, and of whole heads with tiles, on unseen scans."""

from dataclasses import asdict

import numpy as np
import pytest
from brainseg_export.model import keras_engine, load, to_logits
from brainseg_export.parity import Form, measure, reference_scans
from brainseg_runtime import segmenter
from brainseg_runtime.bundle import GRAPHS, Bundle
from brainseg_runtime.certificate import BOUNDS
from brainseg_runtime.nifti import read_labels
from brainseg_runtime.overlap import dice
from brainseg_runtime.scans import find_scans, read

FORMS = (("openvino", "fp32"), ("openvino", "fp16"), ("openvino", "bf16"), ("ort", "fp32"), ("ort", "fp16"))


@pytest.fixture(scope="module")
def bundle(root):
    return Bundle.open(root / "bundles" / "demo")


@pytest.fixture(scope="module")
def references(root, bundle):
    keras = keras_engine(to_logits(load(root / "runs" / "demo" / "model.keras"), bundle.spec))
    scans = find_scans(root / "demo" / "unseen", bundle.spec).scans
    return reference_scans(map(read, scans), keras, bundle.spec, print)


@pytest.mark.parametrize(("engine", "precision"), FORMS)
def test_parity(benchmark, bundle, references, engine, precision):
    """The demo's bundle against the demo's Keras model: logits and Dice."""
    form = Form(GRAPHS[precision], bundle.graph(precision), precision, "", engine)
    parity = benchmark.pedantic(lambda: measure(form, references, bundle.spec), rounds=1)
    assert parity.passed or precision == "bf16", parity
    benchmark.extra_info["parity"] = {
        "form": f"{engine} {precision}",
        "scans": len(references),
        "logits": parity.logits,
        "dice": dict(parity.dice),
        "bounds": asdict(BOUNDS[precision]),
    }


def test_whole_heads_and_tiles(benchmark, root, bundle):
    """One pass and half-overlapping tiles, each against truth, and against each other."""
    found: dict[str, list[list[float]]] = {}
    apart: list[tuple[float, float]] = []

    def score():
        with segmenter.load(bundle.folder) as whole, segmenter.load(bundle.folder, overlap=0.5) as tiles:
            for scan in find_scans(root / "demo" / "unseen", bundle.spec).scans:
                volume = read(scan)
                truth = read_labels(scan.truth)[0]
                answers = [s.compute(s.ready(volume)) for s in (whole, tiles)]
                differences = np.abs(answers[0].answer - answers[1].answer)
                apart.append((float(differences.mean()), float(differences.max())))
                once, tiled = whole.label(answers[0]), tiles.label(answers[1])
                for region in bundle.spec.regions:
                    right = np.isin(truth, region.labels)
                    a, b = once.mask(region.name), tiled.mask(region.name)
                    found.setdefault(region.name, []).append([dice(a, right), dice(b, right), dice(a, b)])

    benchmark.pedantic(score, rounds=1)
    benchmark.extra_info["whole"] = {
        "dice": {
            name: [round(float(value), 4) for value in np.mean(rows, axis=0)] for name, rows in found.items()
        },
        "logits": [float(np.mean([mean for mean, _ in apart])), max(largest for _, largest in apart)],
    }
