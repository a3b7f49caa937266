"""A whole scan through a model: the mask lies where the tumour is, however the scan was stored."""

from dataclasses import replace

import numpy as np
import pytest
from brainseg_runtime.errors import BudgetExceeded
from brainseg_runtime.overlap import dice
from brainseg_runtime.segmenter import Segmenter, load
from brainseg_runtime.volume import Segmentation, Volume
from toys import (
    ORIENTATIONS,
    oblique,
    toy_bundle,
    toy_engine,
    toy_geometry,
    toy_regions,
    toy_spec,
    toy_volume,
)


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=str)
def test_the_same_mask_from_every_axis_order_and_flip(orientation):
    """An oblique, anisotropic, asymmetric scan stored in 48 ways gets one mask in the patient."""
    volume = toy_volume(oblique())
    spec = toy_spec(regions=toy_regions(20.0))
    with Segmenter(spec, toy_engine(spec)) as segmenter:
        expected = segmenter.segment(volume).labels
        stored = Volume(
            np.ascontiguousarray(orientation.apply(volume.data)), orientation.geometry(volume.geometry)
        )
        found = segmenter.segment(stored)
    assert len(np.unique(expected)) == 4
    assert found.geometry is stored.geometry
    np.testing.assert_array_equal(orientation.undo(found.labels), expected)


@pytest.mark.parametrize("engine", ["openvino", "ort"])
def test_a_bundle_and_its_network_give_one_mask(tmp_path, engine):
    """Loading from disk changes nothing: every engine and numpy agree on the mask."""
    bundle = toy_bundle(tmp_path / "toy")
    volume = toy_volume()
    with (
        load(bundle.folder, engine) as segmenter,
        Segmenter(bundle.spec, toy_engine(bundle.spec)) as direct,
    ):
        a, b = segmenter.segment(volume), direct.segment(volume)
        for region in ("WT", "TC", "ET"):
            assert dice(a.mask(region), b.mask(region)) > 0.999
        assert a.record["model"] == {"name": "toy", "sha256": bundle.sha256}
        assert a.record["engine"]["engine"] == engine
        assert a.record["engine_choice"] == "as asked for"
        assert set(a.record["seconds"]) == {"prepare", "infer", "restore"}


def test_a_modality_that_lacks_is_told():
    """The result is flagged, and is that of a channel of zeros."""
    spec = toy_spec()
    spec = replace(spec, modalities=tuple(replace(m, optional=m.name == "t2") for m in spec.modalities))
    volume = toy_volume()
    data = volume.data.copy()
    data[..., [m.name for m in spec.modalities].index("t2")] = 0
    with Segmenter(spec, toy_engine(spec)) as segmenter:
        told = segmenter.segment(replace(volume, data=data, absent=("t2",)))
        silent = segmenter.segment(replace(volume, data=data))
    np.testing.assert_array_equal(told.labels, silent.labels)
    words = {flag["code"]: flag["words"] for flag in told.record["flags"]}
    assert "t2 was not given" in words["Q_ABSENT"]
    assert "Q_ABSENT" not in {flag["code"] for flag in silent.record["flags"]}


def test_volumes_are_in_ml():
    """A thousand voxels of 2 mm edge are 8 ml."""
    labels = np.zeros((20, 24, 18), np.uint8)
    labels[:10, :10, :10] = 3
    segmentation = Segmentation(labels, toy_geometry(spacing=2.0), {3: "ET"}, {"ET": (3,), "WT": (1, 2, 3)})
    assert segmentation.volumes_ml() == pytest.approx({"ET": 8.0, "WT": 8.0})


def test_dice_of_two_masks():
    """Half shared is a half, nothing on both sides is agreement, nothing on one side is none."""
    a = np.array([1, 1, 0, 0], bool)
    b = np.array([0, 1, 1, 0], bool)
    assert dice(a, b) == 0.5
    assert dice(~a & a, ~a & a) == 1.0
    assert dice(a, a & ~a) == 0.0


def test_a_volume_knows_its_shape():
    """Data that do not fit their grid, or are no float32, never become a volume."""
    geometry = toy_geometry()
    with pytest.raises(ValueError, match="a volume is"):
        Volume(np.zeros((2, 2, 2, 1), np.float32), geometry)
    with pytest.raises(ValueError, match="float32"):
        Volume(np.zeros((*geometry.shape, 1)), geometry)
    with pytest.raises(ValueError, match="labels are uint8"):
        Segmentation(np.zeros(geometry.shape, np.int16), geometry, {})


def test_time_is_looked_at_before_labelling_too():
    """Nothing is restored, and so nothing written, of a scan whose time is up when it was computed."""
    spec = toy_spec()
    with Segmenter(spec, toy_engine(spec), timeout=60) as segmenter:
        computed = segmenter.compute(segmenter.ready(toy_volume()))
        segmenter.label(computed)
        with pytest.raises(BudgetExceeded, match="E_TIMEOUT"):
            segmenter.label(replace(computed, seconds={**computed.seconds, "infer": 61.0}))
