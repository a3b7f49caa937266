"""Turning, scaling, bending and mirroring a tile: geometry holds in mm, and labels stay with the image."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from brainseg_runtime.overlap import dice
from brainseg_trainer.augment.space import Pose, cut, draw, sample
from brainseg_trainer.augment.space import _places as places_of

ISO = (1.0, 1.0, 1.0)
SLICES = (0.98, 0.98, 7.0)
TILE = (24, 20, 16)


def source(shape=(40, 36, 32), seed=0):
    """Noise, and a label wherever the first modality is bright."""
    data = np.random.default_rng(seed).normal(size=(*shape, 2)).astype(np.float32)
    return SimpleNamespace(data=data, labels=(data[..., 0] > 1).astype(np.uint8))


def ball(radius, spacing=ISO, shape=(48, 48, 48)):
    """A ball of so many mm in the middle, bright and labelled."""
    grid = np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(shape, spacing, strict=True)])
    inside = (sum(np.square(axis) for axis in grid) < radius**2).transpose(1, 0, 2)
    return SimpleNamespace(data=inside[..., None].astype(np.float32), labels=inside.astype(np.uint8))


def whole(of, pose, spacing=ISO):
    return sample(of, (0, 0, 0), of.labels.shape, spacing, pose)


def test_upright_is_cut_out_as_it_lies():
    """The neutral pose gives the voxels themselves, beyond the scan 0."""
    of = source()
    image, labels = sample(of, (30, 4, 5), TILE, ISO, Pose())
    np.testing.assert_array_equal(image[:10], of.data[30:, 4:24, 5:21])
    np.testing.assert_array_equal(labels[:10], of.labels[30:, 4:24, 5:21])
    assert not image[10:].any()
    assert not labels[10:].any()
    almost = sample(of, (8, 4, 5), TILE, ISO, Pose(angles=(1e-9, 0, 0)))
    np.testing.assert_allclose(almost[0], cut(of, (8, 4, 5), TILE)[0], atol=1e-4)


@pytest.mark.parametrize("mirrored", [(True, False, False), (False, True, True), (True, True, True)])
@pytest.mark.parametrize("angle", [0.0, 0.3])
def test_mirrors_are_exact(mirrored, angle):
    """A mirrored tile is the tile in that pose, its axes reversed."""
    pose = Pose(angles=(angle, 0, 0))
    image, labels = sample(source(), (8, 8, 8), TILE, ISO, pose)
    image2, labels2 = sample(source(), (8, 8, 8), TILE, ISO, replace(pose, mirrored=mirrored))
    axes = [axis for axis in range(3) if mirrored[axis]]
    np.testing.assert_array_equal(np.flip(image2, axes), image)
    np.testing.assert_array_equal(np.flip(labels2, axes), labels)


@pytest.mark.parametrize(("axis", "plane"), [(0, (1, 2)), (1, (0, 2)), (2, (0, 1))])
def test_a_quarter_turn_is_numpys(axis, plane):
    """A turn by 90 degrees about each axis is what numpy calls one, voxel for voxel."""
    of = source((24, 24, 24))
    angles = tuple(np.pi / 2 if n == axis else 0.0 for n in range(3))
    image, labels = whole(of, Pose(angles=angles))
    quarters = 1 if np.array_equal(labels, np.rot90(of.labels, axes=plane)) else 3
    np.testing.assert_array_equal(labels, np.rot90(of.labels, quarters, axes=plane))
    np.testing.assert_allclose(image[..., 1], np.rot90(of.data[..., 1], quarters, axes=plane), atol=1e-4)


@pytest.mark.parametrize("spacing", [ISO, (1.0, 1.5, 2.0)])
@pytest.mark.parametrize("scale", [0.7, 1.4])
def test_things_become_as_much_larger_as_is_said(spacing, scale):
    """A ball of a known radius grows by the scale's cube, whatever the voxels are like."""
    radius = 14.0
    _, labels = whole(ball(radius, spacing), Pose(scale=(scale,) * 3), spacing)
    assert labels.sum() * np.prod(spacing) == pytest.approx(4 / 3 * np.pi * (scale * radius) ** 3, rel=0.04)


def test_turns_are_in_mm():
    """A ball stays a ball on voxels that are no cubes, which it would not if voxels were turned."""
    spacing = (1.0, 1.0, 2.5)
    of = ball(20.0, spacing, (48, 48, 24))
    _, labels = whole(of, Pose(angles=(0.5, -0.4, 0.3)), spacing)
    assert dice(labels > 0, of.labels > 0) > 0.95


@pytest.mark.parametrize("seed", range(12))
def test_labels_stay_with_the_image(seed):
    """In any drawn pose the labels still lie on what is bright."""
    shape = (48, 48, 48)
    rng = np.random.default_rng(seed)
    centre = [np.array(shape) / 2 + rng.uniform(-8, 8, 3) for _ in range(3)]
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    bright = np.any([np.linalg.norm(grid - c, axis=-1) < 7 for c in centre], axis=0)
    of = SimpleNamespace(data=bright[..., None].astype(np.float32), labels=bright.astype(np.uint8))
    image, labels = sample(of, (10, 10, 10), (28, 28, 28), ISO, draw(rng, ISO))
    assert labels.any()
    assert dice(image[..., 0] > 0.5, labels > 0) > 0.97


@pytest.mark.parametrize("spacing", [ISO, SLICES])
def test_bending_never_folds(spacing):
    """Every drawn displacement keeps the order of neighbours: the Jacobian's determinant is positive."""
    tile = (48, 48, 48) if spacing == ISO else (96, 96, 3)
    bent = 0
    for seed in range(60):
        pose = draw(np.random.default_rng(seed), spacing)
        if pose.bend:
            bent += 1
            places = places_of((0, 0, 0), tile, spacing, replace(pose, mirrored=(False,) * 3))
            places = places.astype(np.float64)
            jacobian = np.stack([np.stack(np.gradient(axis), axis=-1) for axis in places], axis=-2)
            assert np.linalg.det(jacobian).min() > 0.05
    assert bent >= 5


def test_slices_are_left_in_their_planes():
    """Where slices lie far apart, nothing is taken from another slice, but for the mirror."""
    for seed in range(40):
        pose = draw(np.random.default_rng(seed), SLICES)
        places = places_of((4, 4, 0), (32, 32, 5), SLICES, pose)
        np.testing.assert_array_equal(places[2], np.broadcast_to(np.arange(5), (32, 32, 5)))


def test_draws_are_as_often_and_as_far_as_the_table_says():
    """Rotation, scaling and bending happen in a fifth of the tiles, mirrors in half, within their ranges."""
    poses = [draw(np.random.default_rng(seed), ISO) for seed in range(2000)]
    for happens, chance in (
        (lambda p: any(p.angles), 0.2),
        (lambda p: p.scale != ISO, 0.2),
        (lambda p: p.bend > 0, 0.2),
        (lambda p: p.mirrored[1], 0.5),
    ):
        assert np.mean([happens(pose) for pose in poses]) == pytest.approx(chance, abs=0.04)
    scales, angles = (np.array([getattr(pose, name) for pose in poses]) for name in ("scale", "angles"))
    assert 0.7 <= scales.min() < 0.75
    assert 1.35 < scales.max() <= 1.4
    assert 0.5 < np.abs(angles).max() <= np.pi / 6
    assert draw(np.random.default_rng(3), ISO) == poses[3]


def test_far_outside_is_background():
    """A tile beyond the scan is empty in any pose."""
    pose = Pose(angles=(0.2, 0.1, 0.0), scale=(1.2, 1.0, 1.0))
    image, labels = sample(source(), (400, 0, 0), TILE, ISO, pose)
    assert not image.any()
    assert not labels.any()
