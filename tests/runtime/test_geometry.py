"""A grid in the patient: what reordering its axes must leave alone."""

import numpy as np
import pytest
from brainseg_runtime.geometry import Geometry, to_canonical
from hypothesis import given
from hypothesis import strategies as st
from toys import ORIENTATIONS, oblique


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=str)
def test_a_reoriented_voxel_stays_where_it_is_in_the_patient(orientation):
    """Every voxel carries its position in mm through each of the 48 axis orders and flips."""
    geometry = oblique()
    index = np.stack(np.meshgrid(*map(np.arange, geometry.shape), indexing="ij"), axis=-1)
    position = index @ geometry.affine[:3, :3].T + geometry.affine[:3, 3]
    moved = orientation.geometry(geometry)
    index = np.stack(np.meshgrid(*map(np.arange, moved.shape), indexing="ij"), axis=-1)
    new_position = index @ moved.affine[:3, :3].T + moved.affine[:3, 3]
    np.testing.assert_allclose(new_position, orientation.apply(position), atol=1e-9)


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=str)
def test_undo_takes_back_apply(orientation):
    """Reordering and undoing gives the array back."""
    array = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    np.testing.assert_array_equal(orientation.undo(orientation.apply(array)), array)


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=str)
def test_canonical_axes_do_not_depend_on_how_a_scan_was_stored(orientation):
    """However one grid is stored, its canonical form is the same grid."""
    geometry = oblique()
    stored = orientation.geometry(geometry)
    canonical = to_canonical(stored).geometry(stored)
    expected = to_canonical(geometry).geometry(geometry)
    assert canonical.orientation == "RAS"
    assert canonical.distance(expected) < 1e-9


def test_distance_is_the_shift_in_mm():
    """Two grids that lie 2 mm apart are 2 mm apart; other shapes are infinitely far."""
    geometry = oblique()
    shifted = geometry.affine.copy()
    shifted[:3, 3] += (0, 2, 0)
    assert geometry.distance(Geometry(geometry.shape, shifted)) == pytest.approx(2.0)
    assert geometry.distance(Geometry((12, 10, 7), geometry.affine)) == float("inf")


@given(st.tuples(*[st.floats(0.1, 10)] * 3))
def test_voxel_volume_is_the_product_of_the_spacings(spacing):
    """On perpendicular axes a voxel's volume is the product of its edges."""
    geometry = Geometry((4, 4, 4), np.diag([*spacing, 1.0]))
    assert geometry.spacing == pytest.approx(spacing)
    assert geometry.voxel_volume == pytest.approx(np.prod(spacing))


def test_an_affine_cannot_be_changed_behind_a_geometry():
    """A geometry keeps its own, read-only copy of the matrix."""
    affine = np.eye(4)
    geometry = Geometry((2, 2, 2), affine)
    affine[0, 3] = 9
    assert geometry.affine[0, 3] == 0
    with pytest.raises(ValueError, match="read-only"):
        geometry.affine[0, 3] = 1
    with pytest.raises(ValueError, match="4x4"):
        Geometry((2, 2, 2), np.eye(3))
