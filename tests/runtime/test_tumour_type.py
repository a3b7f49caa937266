"""The type of a tumour: a mean over what is labelled, and nothing where nothing is."""

import numpy as np
import pytest
from brainseg_runtime.engines.base import EngineIdentity
from brainseg_runtime.engines.function import FunctionEngine
from brainseg_runtime.errors import BundleInvalid
from brainseg_runtime.geometry import Geometry
from brainseg_runtime.segmenter import Segmenter
from brainseg_runtime.spec import Label, Modality, ModelSpec, Region
from brainseg_runtime.tumour_type import tumour_type
from brainseg_runtime.volume import Volume

TYPES = ("meningioma", "glioma", "pituitary")


def spec(**changes):
    fields = {
        "name": "slices",
        "modalities": (Modality("t1c"),),
        "reference": "t1c",
        "labels": (Label(1, "TUMOUR"),),
        "regions": (Region("TUMOUR", (1,)),),
        "tile": (8, 8, 1),
        "divisor": (4, 4, 1),
        "types": TYPES,
        "normalisation": "none",
        "scheme": "whole",
        "anatomy": "head",
    }
    return ModelSpec(**{**fields, **changes})


def softmax(values):
    return np.exp(values) / np.exp(values).sum(-1, keepdims=True)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_the_type_is_the_mean_over_the_tumour(activation):
    """Probabilities are the mean softmax over labelled voxels, whatever the others say."""
    changes = {"activation": "softmax", "channels": (0, 1)} if activation == "softmax" else {}
    logits = np.random.default_rng(0).normal(0, 2, (6, 5, 2, (2 if changes else 1) + 3)).astype(np.float32)
    mask = logits[..., 1] > logits[..., 0] if changes else logits[..., 0] >= 0
    expected = softmax(logits[..., -3:].astype(np.float64))[mask].mean(axis=0)
    found = tumour_type(logits, spec(**changes))
    assert list(found.probabilities.values()) == pytest.approx(expected.tolist(), abs=1e-4)
    assert found.name == TYPES[int(expected.argmax())]
    logits[~mask, -3:] = 50
    assert tumour_type(logits, spec(**changes)) == found


def test_without_a_tumour_there_is_no_type():
    """An empty answer has no type."""
    assert tumour_type(np.full((3, 3, 1, 4), -5, np.float32), spec()) is None


def answer(tiles):
    """A network that sees bright voxels as tumour, and its type by how bright they are."""
    bright = tiles[..., :1]
    return np.concatenate([bright - 1, -np.abs(bright - np.array([2, 3, 4]))], axis=-1)


def segment(data, **changes):
    engine = FunctionEngine(answer, EngineIdentity("toy", "toy", "cpu", "fp32", "0"))
    volume = Volume(data[..., None], Geometry(data.shape, np.diag([1.0, 1.0, 7.0, 1.0])))
    with Segmenter(spec(**changes), engine) as segmenter:
        return segmenter.segment(volume, probabilities=True)


def test_types_change_no_label():
    """Labels and maps are those of the region channels alone; the record tells the type."""
    data = np.zeros((9, 7, 3), np.float32)
    data[2:6, 1:5, 1] = 3.1
    found = segment(data)
    np.testing.assert_array_equal(found.labels, data > 1)
    assert found.probabilities.shape == (9, 7, 3, 1)
    assert found.record["type"]["name"] == "glioma"
    assert sum(found.record["type"]["probabilities"].values()) == pytest.approx(1.0, abs=1e-3)
    data[:] = 0.5
    data[0, 0, 0] = 0
    assert segment(data).record["type"] is None


def test_a_model_without_types_tells_none():
    """The record of any other model says nothing of types."""

    def regions_alone(tiles):
        return tiles[..., :1] - 1

    engine = FunctionEngine(regions_alone, EngineIdentity("toy", "toy", "cpu", "fp32", "0"))
    volume = Volume(np.eye(9, dtype=np.float32)[..., None, None] * 3, Geometry((9, 9, 1), np.eye(4)))
    with Segmenter(spec(types=()), engine) as segmenter:
        assert "type" not in segmenter.segment(volume).record


def test_a_stack_is_its_slices():
    """For a network of single slices a stack's labels are those of each slice alone."""
    rng = np.random.default_rng(1)
    data = rng.normal(0, 2, (9, 8, 4)).astype(np.float32)
    whole = segment(data).labels
    for k in range(4):
        np.testing.assert_array_equal(segment(data[..., k : k + 1]).labels[..., 0], whole[..., k])


def test_a_slice_that_ends_in_the_tumour_is_no_news():
    """Faces across slices raise no flag on a thin scan; faces within them do."""
    data = np.zeros((16, 16, 1), np.float32)
    data[:, :, 0] = 0.5
    data[0, 0] = data[15, 15] = 0
    data[4:12, 4:12] = 3
    assert "Q_EDGE" not in {flag["code"] for flag in segment(data).record["flags"]}
    data[0:12, 4:12] = 3
    (edge,) = [flag for flag in segment(data).record["flags"] if flag["code"] == "Q_EDGE"]
    assert set(edge["numbers"]) == {"left_mm2"}


def test_types_travel_with_the_spec():
    """The spec keeps them through JSON, counts their channels, and refuses doubled and lonely ones."""
    made = spec()
    assert ModelSpec.from_json(made.to_json()) == made
    assert (made.output_channels, made.label_channels) == (4, 1)
    assert made.thin
    assert not spec(divisor=(4, 4, 4), tile=(8, 8, 8)).thin
    assert not spec(divisor=(1, 1, 1)).thin
    for types in (("a", "a"), ("a", ""), ("a",)):
        with pytest.raises(BundleInvalid, match="types"):
            spec(types=types)
