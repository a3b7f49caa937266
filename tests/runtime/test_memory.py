"""Memory is known before it is taken, and decides how a scan is computed, never what is computed."""

from dataclasses import replace

import numpy as np
import pytest
from brainseg_runtime.errors import BudgetExceeded
from brainseg_runtime.memory import MEGABYTE, Model, machine_memory, plan
from brainseg_runtime.segmenter import Segmenter
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import toy_engine, toy_spec, toy_volume

WHOLE = toy_spec(scheme="whole", halo=4, working_bytes=500)
SCAN = (240, 240, 155)
OPENVINO, ORT, TRT = Model("openvino"), Model("ort"), Model("trt")


@given(st.tuples(*[st.integers(8, 200)] * 3), st.integers(1, 40))
def test_more_voxels_never_take_less(grid, more):
    """The plan's memory grows with the grid."""
    bigger = (grid[0] + more, grid[1], grid[2])
    assert plan(bigger, SCAN, WHOLE, OPENVINO).bytes >= plan(grid, SCAN, WHOLE, OPENVINO).bytes


@settings(max_examples=25, deadline=None)
@given(st.tuples(*[st.integers(8, 200)] * 3), st.floats(0.5, 1.0))
def test_a_limit_is_kept_or_refused(grid, share):
    """Whatever the limit: a plan within it, of as few passes as it takes, or E_MEMORY."""
    free = plan(grid, SCAN, WHOLE, OPENVINO)
    limit = int(free.bytes * share)
    smallest = min(plan(grid, SCAN, WHOLE, OPENVINO, limit=n).bytes for n in _reachable(grid))
    if limit < smallest:
        with pytest.raises(BudgetExceeded, match=r"E_MEMORY.*--max-memory"):
            plan(grid, SCAN, WHOLE, OPENVINO, limit=limit)
    else:
        found = plan(grid, SCAN, WHOLE, OPENVINO, limit=limit)
        assert found.bytes <= limit
        assert len(found.tiling) >= len(free.tiling) == 1


def _reachable(grid):
    """Limits that can be kept, from ample to the tightest that is found."""
    limit = plan(grid, SCAN, WHOLE, OPENVINO).bytes
    while True:
        yield limit
        try:
            limit = plan(grid, SCAN, WHOLE, OPENVINO, limit=limit - 1).bytes
        except BudgetExceeded:
            return


def test_slabs_need_a_known_halo_and_tiles_are_not_cut():
    """Where a cut would change the answer there is none: the scan is refused."""
    grid = (160, 192, 160)
    free = plan(grid, SCAN, WHOLE, ORT)
    limit = free.bytes - 100 * MEGABYTE
    assert len(plan(grid, SCAN, WHOLE, ORT, limit=limit).tiling) > 1
    for spec in (toy_spec(scheme="whole", working_bytes=500), toy_spec(tile=(128,) * 3, working_bytes=500)):
        with pytest.raises(BudgetExceeded, match="E_MEMORY"):
            plan(grid, SCAN, spec, ORT, limit=100 * MEGABYTE)


def test_less_memory_gives_the_same_mask_and_says_how():
    """A head cut into slabs is labelled as in one pass; the scan's record tells the passes."""
    spec = toy_spec(scheme="whole", halo=4, working_bytes=100_000)
    volume = toy_volume()
    with Segmenter(spec, toy_engine(spec)) as segmenter:
        free = segmenter.segment(volume)
    limit = free.record["plan"]["expected_memory_mb"] * MEGABYTE - 50 * MEGABYTE
    with Segmenter(spec, toy_engine(spec), max_memory=limit) as segmenter:
        tight = segmenter.segment(volume)
    assert free.record["plan"]["passes"] == 1 < tight.record["plan"]["passes"]
    np.testing.assert_array_equal(free.labels, tight.labels)
    assert free.record["options"] == tight.record["options"]
    assert free.record["options"]["scheme"] == "whole"


def test_the_machine_has_memory():
    """The default limit is a real one."""
    assert 100 * MEGABYTE < machine_memory() < 10**15


@settings(max_examples=50, deadline=None)
@given(st.tuples(*[st.integers(8, 200)] * 3), st.integers(1, 9), st.integers(1, 4000))
def test_a_gpus_free_memory_is_kept_to_or_refused(grid, batch, free):
    """Fewer tiles at a time, or slabs; never more than nine tenths of what is free."""
    spec = toy_spec(scheme="whole", halo=4, working_bytes=500)
    allowed = 0.9 * free * MEGABYTE
    try:
        found = plan(grid, SCAN, spec, TRT, batch=batch, gpu=free * MEGABYTE)
    except BudgetExceeded:
        assert plan(grid, SCAN, spec, TRT, batch=1, gpu=10**12).gpu_bytes > allowed
    else:
        assert found.gpu_bytes <= allowed
        assert found.batch in (batch, batch // 2, batch // 4, batch // 8)


@settings(max_examples=50, deadline=None)
@given(st.tuples(*[st.integers(8, 200)] * 3), st.integers(1, 9), st.integers(1, 4000))
def test_whether_a_scan_stays_on_the_gpu_changes_nothing_else_of_the_plan(grid, batch, free):
    """It does where nine tenths of what is free hold it too, and a plan that was possible stays possible."""
    spec = toy_spec(scheme="whole", halo=4, working_bytes=500)
    given = (grid, SCAN, spec, TRT)
    try:
        tiles = plan(*given, batch=batch, gpu=free * MEGABYTE)
    except BudgetExceeded:
        with pytest.raises(BudgetExceeded, match="E_MEMORY"):
            plan(*given, batch=batch, gpu=free * MEGABYTE, back="labels")
        return
    stays = plan(*given, batch=batch, gpu=free * MEGABYTE, back="labels")
    assert replace(stays, gpu_bytes=tiles.gpu_bytes, back=None) == tiles
    assert (stays.back is None) == (stays.gpu_bytes == tiles.gpu_bytes)
    assert stays.gpu_bytes <= 0.9 * free * MEGABYTE
    raw = 4 * 4 * SCAN[0] * SCAN[1] * SCAN[2]
    assert stays.back is None or stays.gpu_bytes > tiles.gpu_bytes + raw
    assert plan(*given, batch=batch, back="labels").back is None


def test_on_a_gpu_tiles_are_batched_as_far_as_its_memory_goes():
    """The scheme and the tile stay; the machine's own memory no longer holds the activations."""
    spec = toy_spec(tile=(128,) * 3, working_bytes=1000)
    grid = (200, 200, 200)
    one = plan(grid, SCAN, spec, TRT, gpu=10**12)
    ample = plan(grid, SCAN, spec, TRT, batch=4, gpu=10**12)
    tight = plan(grid, SCAN, spec, TRT, batch=4, gpu=int(2.5 * one.gpu_bytes))
    assert (ample.batch, tight.batch) == (4, 2)
    assert ample.tiling == tight.tiling == plan(grid, SCAN, spec, ORT).tiling
    assert one.bytes < plan(grid, SCAN, spec, ORT).bytes
    assert one.record()["expected_gpu_memory_mb"] > 0
    assert "expected_gpu_memory_mb" not in plan(grid, SCAN, spec, ORT).record()
    with pytest.raises(BudgetExceeded, match=r"E_MEMORY.*GPU.*--batch"):
        plan(grid, SCAN, spec, TRT, batch=4, gpu=one.gpu_bytes // 2)


def test_a_gpu_that_falls_short_after_all_gets_fewer_tiles_and_the_record_says_so():
    """The labels are the same; a tile alone that does not fit ends the scan with E_MEMORY."""
    spec = toy_spec(tile=(8, 8, 8))

    def at_most(count):
        def mix(tiles):
            if len(tiles) > count:
                raise BudgetExceeded("E_MEMORY", f"{len(tiles)} tiles.", "Fewer.")
            return free.infer(tiles)

        return toy_engine(spec, mix)

    free, volume = toy_engine(spec), toy_volume()
    with Segmenter(spec, free, batch=4) as segmenter:
        expected = segmenter.segment(volume)
    with Segmenter(spec, at_most(2), batch=4, gpu_memory=10**12) as segmenter:
        found = segmenter.segment(volume)
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert found.record["plan"]["batch"] == 2
    with Segmenter(spec, at_most(0), batch=4) as segmenter, pytest.raises(BudgetExceeded, match="1 tiles"):
        segmenter.segment(volume)
