"""Tiles cover a grid, and blending them adds nothing of its own."""

from itertools import pairwise

import numpy as np
import pytest
from brainseg_runtime.tiles import Tiling, predict
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import toy_engine, toy_spec

SIZES = st.tuples(*[st.integers(1, 60)] * 3)
OVERLAPS = st.sampled_from([0.0, 0.25, 0.5, 0.75])


@given(SIZES, OVERLAPS)
def test_weights_sum_to_one_at_every_voxel(shape, overlap):
    """However tiles fall, each voxel's answer is a weighted mean of what the tiles say of it."""
    tiling = Tiling.of(shape, toy_spec(overlap=overlap))
    for size, tile, starts, weights in zip(shape, tiling.tile, tiling.starts, tiling.weights(), strict=True):
        total = np.zeros(max(size, tile))
        for start, weight in zip(starts, weights, strict=True):
            total[start : start + tile] += weight
        np.testing.assert_allclose(total[:size], 1.0, rtol=1e-5)


@given(SIZES, OVERLAPS)
def test_tiles_suit_the_network_and_overlap_enough(shape, overlap):
    """Tiles are multiples of the divisor, stay inside the grid, and share at least the overlap."""
    spec = toy_spec(overlap=overlap)
    tiling = Tiling.of(shape, spec)
    for size, tile, starts in zip(shape, tiling.tile, tiling.starts, strict=True):
        assert tile % 4 == 0
        assert starts[0] == 0
        assert starts[-1] + tile == max(size, tile) or len(starts) == 1
        assert all(b - a <= np.ceil(tile * (1 - overlap)) for a, b in pairwise(starts))


@settings(max_examples=25)
@given(st.tuples(*[st.integers(1, 40)] * 3), OVERLAPS, st.integers(1, 5))
def test_a_voxelwise_network_gives_the_same_through_tiles_as_at_once(shape, overlap, batch):
    """Cutting, batching and blending change nothing for a network that looks at single voxels."""
    spec = toy_spec(overlap=overlap)
    engine = toy_engine(spec)
    data = np.random.default_rng(1).normal(size=(*shape, 4)).astype(np.float32)
    np.testing.assert_allclose(predict(data, engine, spec, batch), engine.infer(data[None])[0], atol=1e-4)


def test_every_tile_has_the_size_that_the_spec_says():
    """The engine sees whole tiles in batches no larger than asked for, the last one ragged."""
    spec = toy_spec()
    seen = []

    def function(tiles):
        seen.append(tiles.shape)
        return tiles[..., :3]

    predict(np.zeros((40, 17, 16, 4), np.float32), toy_engine(spec, function), spec, batch=3)
    assert {shape[1:] for shape in seen} == {(16, 16, 16, 4)}
    assert [shape[0] for shape in seen] == [3, 3, 2]


def test_the_middle_of_a_tile_counts_more_than_its_edge():
    """Where two tiles disagree, the one whose middle is nearer decides."""
    spec = toy_spec(tile=(16, 16, 16))
    answers = iter([1.0, 2.0])

    def function(tiles):
        return np.full((*tiles.shape[:4], 3), next(answers), np.float32)

    logits = predict(np.zeros((24, 16, 16, 4), np.float32), toy_engine(spec, function), spec)[:, 8, 8, 0]
    assert logits[0] == pytest.approx(1.0)
    assert logits[-1] == pytest.approx(2.0)
    assert np.all(np.diff(logits) >= -1e-6)
