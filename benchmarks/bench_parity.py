"""Agreement of a trained model's forms with Keras, on scans that neither training nor certificate saw."""

import json
from dataclasses import asdict

import pytest
from brainseg_export.model import keras_engine, load, to_logits
from brainseg_export.parity import Form, measure, reference_scans
from brainseg_runtime.bundle import GRAPHS, Bundle
from brainseg_runtime.certificate import BOUNDS
from brainseg_runtime.scans import find_scans, read


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_parity(benchmark, root, precision):
    """The demo's bundle against the demo's Keras model: logits and Dice."""
    bundle = Bundle.open(root / "bundles" / "demo")
    keras = keras_engine(to_logits(load(root / "runs" / "demo" / "model.keras"), bundle.spec))
    scans = find_scans(root / "demo" / "unseen", bundle.spec).scans
    references = reference_scans(map(read, scans), keras, bundle.spec, print)
    form = Form(GRAPHS[precision], bundle.graph(precision), precision, "")
    parity = benchmark.pedantic(lambda: measure(form, references, bundle.spec), rounds=1)
    assert parity.passed, parity
    benchmark.extra_info["parity"] = {
        "precision": precision,
        "scans": len(references),
        "logits": parity.logits,
        "dice": dict(parity.dice),
        "bounds": asdict(BOUNDS[precision]),
        "provider": json.dumps(parity.identity.provider),
    }
