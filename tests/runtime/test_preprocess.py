"""There and back: preparing a scan loses nothing that its inverse does not bring home."""

from functools import partial

import numpy as np
import pytest
from brainseg_runtime.errors import ScanRefused
from brainseg_runtime.geometry import Geometry
from brainseg_runtime.labels import decide
from brainseg_runtime.preprocess import prepare, prepare_labels, restore
from brainseg_runtime.volume import Volume
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import ORIENTATIONS, oblique, toy_geometry, toy_spec, toy_volume


def one_hot(labels):
    """Logits (i, j, k, 3) that a decision turns into exactly these labels."""
    spec = toy_spec()
    return np.stack([np.where(np.isin(labels, r.labels), 8.0, -8.0) for r in spec.regions], -1).astype(
        np.float32
    )


@pytest.mark.parametrize("orientation", ORIENTATIONS[::5], ids=str)
def test_labels_come_home_voxel_for_voxel(orientation):
    """A labelling brought to the network's grid and back is the same inside the brain's box."""
    stored = orientation.geometry(oblique())
    volume = toy_volume(stored)
    spec = toy_spec(spacing=(1.0, 1.25, 3.0))
    prepared = prepare(volume, spec)
    labels = np.random.default_rng(0).integers(0, 4, stored.shape).astype(np.uint8)
    inside = np.zeros(stored.shape, bool)
    prepared.placement.reorientation.apply(inside)[prepared.placement.box] = True
    there = prepare_labels(labels, prepared.placement)
    home = restore(one_hot(there), prepared.placement, partial(decide, spec=spec))
    np.testing.assert_array_equal(home, np.where(inside, labels, 0))


@settings(max_examples=25, deadline=None)
@given(st.tuples(*[st.floats(0.5, 3.0)] * 3))
def test_a_smooth_mask_survives_any_spacing(spacing):
    """A ball drawn on the network's grid of any spacing comes home as that ball."""
    geometry = toy_geometry((28, 30, 26))
    volume = toy_volume(geometry)
    spec = toy_spec(spacing=spacing)
    prepared = prepare(volume, spec)
    axes = np.meshgrid(
        *[
            (np.arange(n) + 0.5) / n * size - size / 2
            for n, size in zip(prepared.placement.grid, prepared.placement.box_shape, strict=True)
        ],
        indexing="ij",
    )
    radius = np.sqrt(sum(a**2 for a in axes))
    logits = np.repeat((8.0 - radius)[..., None], 3, -1).astype(np.float32)
    home = restore(logits, prepared.placement, partial(decide, spec=spec)) == 3
    volume_mm3 = home.sum()
    assert volume_mm3 == pytest.approx(4 / 3 * np.pi * 8**3, rel=0.12)


def test_the_same_scan_is_prepared_alike_however_it_is_stored():
    """All 48 axis orders and flips of one scan give the network identical bits."""
    volume = toy_volume(oblique())
    spec = toy_spec()
    expected = prepare(volume, spec).data
    for orientation in ORIENTATIONS:
        stored = Volume(
            np.ascontiguousarray(orientation.apply(volume.data)), orientation.geometry(volume.geometry)
        )
        np.testing.assert_array_equal(prepare(stored, spec).data, expected)


@pytest.mark.parametrize("background", [0.0, -3.25, 1000.0])
def test_intensities_are_normalised_over_the_brain_only(background):
    """Inside the brain mean 0 and deviation 1, outside exactly 0, whatever the background's value is."""
    volume = toy_volume(background=background)
    brain = (volume.data != background).any(-1)
    prepared = prepare(volume, toy_spec())
    inside = brain[::-1, ::-1][prepared.placement.box]
    for c in range(4):
        values = prepared.data[..., c]
        assert values[inside].mean() == pytest.approx(0, abs=1e-5)
        assert values[inside].std() == pytest.approx(1, abs=1e-4)
        assert (values[~inside] == 0).all()


@given(st.floats(0.01, 100), st.floats(-1000, 1000))
@settings(max_examples=30, deadline=None)
def test_the_units_of_a_scanner_do_not_matter(gain, offset):
    """Scaling and shifting a modality's intensities leaves what the network sees."""
    volume = toy_volume()
    changed = volume.data.copy()
    changed[..., 1] = changed[..., 1] * gain + offset
    expected = prepare(volume, toy_spec()).data
    got = prepare(Volume(changed, volume.geometry), toy_spec()).data
    np.testing.assert_allclose(got, expected, atol=5e-2)


def test_a_change_of_spacing_keeps_straight_lines_straight():
    """Linear interpolation gives a linear ramp back at every spacing."""
    geometry = Geometry((20, 12, 16), np.diag([1.0, 2.0, 0.5, 1.0]))
    i, j, k = np.meshgrid(*map(np.arange, geometry.shape), indexing="ij")
    ramp = (3 * i + 5 * j + 7 * k).astype(np.float32)[..., None]
    spec = toy_spec(modalities=toy_spec().modalities[1:2], normalisation="none", spacing=(1.0, 1.0, 1.0))
    data = prepare(Volume(ramp, geometry), spec).data[..., 0]
    assert data.shape == (20, 24, 8)
    steps = [np.diff(data, axis=axis)[2:-2, 2:-2, 2:-2] for axis in range(3)]
    for step, expected in zip(steps, (3.0, 2.5, 14.0), strict=True):
        np.testing.assert_allclose(step, expected, rtol=1e-4)


def test_without_a_background_everything_is_brain():
    """A scan cut tightly around tissue has no repeated value, and is used whole."""
    geometry = toy_geometry((12, 12, 12))
    data = np.random.default_rng(0).normal(size=(12, 12, 12, 4)).astype(np.float32)
    prepared = prepare(Volume(data, geometry), toy_spec())
    assert prepared.placement.grid == (12, 12, 12)


def test_a_scan_that_is_only_background_is_refused():
    """Where nothing stands out there is no brain, and no answer."""
    data = np.zeros((12, 12, 12, 4), np.float32)
    with pytest.raises(ScanRefused, match="E_NO_BRAIN"):
        prepare(Volume(data, toy_geometry((12, 12, 12))), toy_spec())
    with pytest.raises(ScanRefused, match="E_CHANNELS"):
        prepare(Volume(data[..., :3], toy_geometry((12, 12, 12))), toy_spec())
