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


@settings(max_examples=25)
@given(st.tuples(*[st.integers(1, 40)] * 3))
def test_one_pass_and_tiles_agree_for_a_voxelwise_network(shape):
    """The schemes are two ways to the same answer where the network looks at single voxels."""
    tiles, whole = toy_spec(), toy_spec(scheme="whole")
    data = np.random.default_rng(1).normal(size=(*shape, 4)).astype(np.float32)
    seen = []

    def function(batch):
        seen.append(batch.shape)
        return batch[..., :3] * 2

    expected = predict(data, toy_engine(tiles), tiles)
    np.testing.assert_allclose(predict(data, toy_engine(whole), whole), expected, atol=1e-4)
    predict(data, toy_engine(whole, function), whole)
    assert len(seen) == 1
    assert all(n % 4 == 0 and n - 4 < size <= n for n, size in zip(seen[0][1:4], shape, strict=True))


def neighbourhood(tiles):
    """A network of stride 2 that sees 3 voxels to either side: block means, spread to their neighbours."""
    n, i, j, k, _ = tiles.shape
    blocks = tiles[..., :3].reshape(n, i // 2, 2, j // 2, 2, k // 2, 2, 3).mean(axis=(2, 4, 6))
    padded = np.pad(blocks, ((0, 0), (1, 1), (1, 1), (1, 1), (0, 0)))
    spread = padded[:, :-2, :-2, :-2] + 2 * padded[:, 1:-1, 1:-1, 1:-1] - padded[:, 2:, 2:, 2:]
    return spread.repeat(2, axis=1).repeat(2, axis=2).repeat(2, axis=3)


@settings(max_examples=40, deadline=None)
@given(st.tuples(*[st.integers(1, 50)] * 3), st.integers(2, 9))
def test_slabs_with_a_halo_give_what_one_pass_gives(shape, count):
    """A halo as wide as the network sees makes the cut invisible, wherever it falls."""
    spec = toy_spec(scheme="whole", halo=3)
    tiling = Tiling.slabs(shape, spec, count)
    data = np.random.default_rng(2).normal(size=(*shape, 4)).astype(np.float32)
    engine = toy_engine(spec, neighbourhood)
    cut = predict(data, engine, spec, tiling=tiling)
    np.testing.assert_allclose(cut, predict(data, engine, spec), atol=1e-6)
    assert len(tiling) <= count
    assert all(n % 4 == 0 for n in tiling.tile)


def test_slabs_without_a_halo_show_their_seams():
    """The test above can fail: a halo that is too thin is seen."""
    spec = toy_spec(scheme="whole", halo=0)
    data = np.random.default_rng(2).normal(size=(32, 8, 8, 4)).astype(np.float32)
    engine = toy_engine(spec, neighbourhood)
    cut = predict(data, engine, spec, tiling=Tiling.slabs((32, 8, 8), spec, 2))
    assert not np.allclose(cut, predict(data, engine, spec), atol=1e-2)
