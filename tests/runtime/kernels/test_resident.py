"""A scan that stays on a GPU gives what it gives elsewhere: here by the kernels' source on a CPU."""

import json
from dataclasses import replace

import numpy as np
import pytest
from brainseg_runtime.batch import Done, run
from brainseg_runtime.engines.ort import OrtEngine
from brainseg_runtime.errors import BudgetExceeded, EngineUnavailable
from brainseg_runtime.kernels.proof import Fetching, Summing
from brainseg_runtime.memory import MEGABYTE
from brainseg_runtime.resident import Decided, Resident
from brainseg_runtime.scans import find_scans
from brainseg_runtime.segmenter import Segmenter
from brainseg_runtime.spec import Region
from brainseg_runtime.volume import Volume
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toys import (
    ORIENTATIONS,
    oblique_affine,
    toy_geometry,
    toy_graph,
    toy_regions,
    toy_spec,
    toy_volume,
    write_scan,
)

from .machines import SPECS, Cpu

AMPLE = 10**12


def both(spec, card, volume, *, probabilities=False, engine=None, **options):
    """A scan through the host and through the card."""
    engine = engine or Summing(spec, card)
    options = {"gpu_memory": AMPLE, **options}
    host = Segmenter(spec, engine, **options)
    stays = Segmenter(spec, engine, resident=Resident(engine, card), **options)
    return [one.segment(volume, probabilities=probabilities) for one in (host, stays)]


def assert_same(found, expected):
    """Labels, maps and record, but for where it was computed and how long that took."""
    np.testing.assert_array_equal(found.labels, expected.labels)
    if expected.probabilities is None:
        assert found.probabilities is None
    else:
        np.testing.assert_array_equal(found.probabilities, expected.probabilities)
    assert comparable(found.record) == comparable(expected.record)
    assert expected.record["plan"]["on_gpu"] == "tiles"
    assert found.record["plan"]["on_gpu"].startswith("scan, ")


def comparable(record):
    plan = {k: v for k, v in record["plan"].items() if k not in ("on_gpu", "expected_gpu_memory_mb")}
    return {**record, "plan": plan, "seconds": set(record["seconds"])}


RESIDENT_SPECS = {**SPECS, "specks": {"regions": toy_regions(60.0)}}


@pytest.mark.parametrize("name", RESIDENT_SPECS)
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_mask_ranges_flags_and_record_are_those_of_the_host(card, name, batch):
    """Whatever the scheme, the spacing, the activation, and however many tiles go at a time."""
    spec = toy_spec(**RESIDENT_SPECS[name])
    expected, found = both(spec, card, toy_volume(seed=2), batch=batch)
    assert_same(found, expected)
    assert len(np.unique(found.labels)) > 1
    back = "logits" if name in ("softmax", "types") else "labels"
    assert found.record["plan"]["on_gpu"] == f"scan, {back} come back"


@pytest.mark.parametrize("orientation", ORIENTATIONS[::7], ids=lambda o: f"{o.axes}{o.flips}")
def test_any_orientation_gives_the_mask_of_the_host(card, orientation):
    """Axes in any order and direction, oblique and of unequal spacing, in a file's order of memory."""
    geometry = replace(toy_geometry(), affine=oblique_affine((1.0, 1.25, 1.5)))
    volume = toy_volume(geometry)
    data = np.asfortranarray(orientation.apply(volume.data))
    assert_same(*reversed(both(toy_spec(), card, Volume(data, orientation.geometry(geometry)))))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(*[st.integers(5, 14)] * 3),
    spacing=st.tuples(*[st.floats(0.6, 2.5)] * 3),
    tile=st.sampled_from([4, 8, 12]),
    overlap=st.floats(0, 0.7),
    scheme=st.sampled_from(["tiles", "whole"]),
    batch=st.integers(1, 5),
    thresholds=st.tuples(*[st.floats(0.1, 0.9)] * 3),
    probabilities=st.booleans(),
    seed=st.integers(0, 9),
)
def test_no_scan_shows_where_it_was_computed(
    card, shape, spacing, tile, overlap, scheme, batch, thresholds, probabilities, seed
):
    """Odd shapes, ragged last passes, any thresholds, maps or none."""
    regions = zip(toy_spec().regions, thresholds, strict=True)
    spec = toy_spec(
        spacing=spacing,
        tile=(tile,) * 3,
        overlap=overlap,
        scheme=scheme,
        regions=tuple(Region(region.name, region.labels, t) for region, t in regions),
    )
    volume = toy_volume(toy_geometry(shape), seed=seed)
    expected, found = both(spec, card, volume, batch=batch, probabilities=probabilities)
    assert_same(found, expected)


def test_slabs_are_those_of_the_host(card):
    """A head that is cut for want of memory: no blending, seams in between."""
    spec = toy_spec(scheme="whole", halo=4, working_bytes=100_000)
    expected, found = both(spec, card, toy_volume(), gpu_memory=750 * MEGABYTE)
    assert found.record["plan"]["passes"] > 1
    assert_same(found, expected)


def test_an_onnx_graph_gives_the_mask_of_the_host(library):
    """Through ONNX Runtime itself, which reads tiles from the card's memory and writes logits there."""
    spec, card = toy_spec(), Cpu(library)
    engine = OrtEngine(toy_graph(spec), spec, "fp32")
    assert_same(*reversed(both(spec, card, toy_volume(), engine=engine, batch=2)))
    tiles = np.random.default_rng(0).normal(size=(3, 8, 4, 12, 4)).astype(np.float32)
    answer = Fetching(Resident(engine, card), spec.output_channels).infer(tiles)
    np.testing.assert_array_equal(answer, engine.infer(tiles))
    engine.close()
    with pytest.raises(EngineUnavailable, match="closed"):
        engine.infer_at(0, 0, (1, 4, 4, 4, 4))


@pytest.mark.data
def test_real_scans_give_the_mask_of_the_host(card, real_scans):
    """Voxel for voxel, at their own spacing, in tiles and as whole heads."""
    for changes in ({"tile": (96, 96, 96)}, {"scheme": "whole", "divisor": (16, 16, 16)}):
        assert_same(*reversed(both(toy_spec(**changes), card, real_scans[0], batch=2)))


@pytest.mark.parametrize("name", ["tiles", "softmax", "types", "whole head"])
def test_logits_that_are_not_finite_are_an_error_and_never_a_mask(card, name):
    """Wherever they stand: here in the last channel, at a place that lies beyond the grid."""
    spec = toy_spec(**SPECS[name])
    broken = Summing(spec, card, broken=True)
    with pytest.raises(EngineUnavailable, match=r"E_ENGINE_FAILED.*NaN or infinite"):
        both(spec, card, toy_volume(), engine=broken)[1]


class Hungry(Summing):
    """Takes so many tiles at most."""

    most = 1

    def infer(self, tiles):
        self.require(len(tiles))
        return super().infer(tiles)

    def infer_at(self, tiles, logits, shape):
        self.require(shape[0])
        super().infer_at(tiles, logits, shape)

    def require(self, count):
        if count > self.most:
            raise BudgetExceeded("E_MEMORY", f"{count} tiles.", "Fewer.")


def test_where_memory_falls_short_half_as_many_tiles_go_and_the_record_says_so(card):
    """The labels are the same; a tile alone that does not fit ends the scan with E_MEMORY."""
    spec, volume = toy_spec(tile=(8, 8, 8)), toy_volume()
    engine = Hungry(spec, card)
    expected, _ = both(spec, card, volume, batch=4)
    _, found = both(spec, card, volume, batch=4, engine=engine)
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert found.record["plan"]["on_gpu"] == "scan, labels come back"
    assert (expected.record["plan"]["batch"], found.record["plan"]["batch"]) == (4, 1)
    Hungry.most = 0
    try:
        with pytest.raises(BudgetExceeded, match="1 tiles"):
            both(spec, card, volume, batch=4, engine=engine)
    finally:
        Hungry.most = 1


def test_a_full_card_is_emptied_before_fewer_tiles_are_tried(library):
    """What the larger batch took does not stand in the way of the smaller one."""
    spec, volume, ample = toy_spec(tile=(8, 8, 8), overlap=0.0), toy_volume(), Cpu(library)
    most = {}
    for batch in (4, 2):
        both(spec, ample, volume, batch=batch)
        most[batch], ample.most = ample.most, 0
    expected, found = both(spec, Cpu(library, limit=most[4] - 1), volume, batch=4)
    assert found.record["plan"]["batch"] == 2
    np.testing.assert_array_equal(found.labels, expected.labels)


class Hoarding(Cpu):
    """Keeps, as a GPU's card does, memory that is done with; the engine beside it needs some of its own."""

    def begin(self):
        pass

    @property
    def free(self):
        return self.limit - self.held


def test_memory_that_was_kept_from_other_scans_fails_none(library):
    """What a card holds of one scan is given back for the next, which then goes as it was planned."""
    spec, volume, ample = toy_spec(tile=(8, 8, 8), overlap=0.0), toy_volume(), Cpu(library)
    (expected, _), most = both(spec, ample, volume, batch=2), ample.most
    card = Hoarding(library, limit=int(1.5 * most))
    engine = Summing(spec, card)
    with Segmenter(spec, engine, batch=2, gpu_memory=AMPLE, resident=Resident(engine, card)) as segmenter:
        for _ in range(3):
            found = segmenter.segment(volume)
            np.testing.assert_array_equal(found.labels, expected.labels)
            assert found.record["plan"]["on_gpu"] == "scan, labels come back"
            assert found.record["plan"]["batch"] == 2


def test_a_scan_that_a_gpu_has_no_room_for_after_all_takes_the_hosts_way_and_the_record_says_so(library):
    """The mask is the host's, its tiles alone go to the GPU, and the card holds nothing in their way."""
    spec, volume, card = toy_spec(tile=(8, 8, 8)), toy_volume(), Hoarding(library, limit=1000)
    held = []

    class Beside(Summing):
        def infer(self, tiles):
            held.append(card.held)
            return super().infer(tiles)

    expected, found = both(spec, card, volume, batch=4, engine=Beside(spec, card))
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert found.record["plan"] == expected.record["plan"]
    assert found.record["plan"]["on_gpu"] == "tiles"
    assert set(held) == {0}
    Hungry.most = 0
    try:
        with pytest.raises(BudgetExceeded, match="1 tiles"):
            both(spec, card, volume, engine=Hungry(spec, card))
    finally:
        Hungry.most = 1


def test_what_the_card_holds_is_given_back_before_a_scan_that_the_gpu_has_no_room_for(library):
    """A small scan stays on the GPU; for the large one after it the engine gets the memory."""
    spec, card, held = toy_spec(tile=(8, 8, 8), working_bytes=100), Hoarding(library), []

    class Beside(Summing):
        def infer(self, tiles):
            held.append(card.held)
            return super().infer(tiles)

    engine = Beside(spec, card)
    small, large = toy_volume(toy_geometry((12, 12, 12))), toy_volume(toy_geometry((40, 44, 36)))
    with Segmenter(spec, engine, gpu_memory=1_000_000, resident=Resident(engine, card)) as segmenter:
        assert segmenter.segment(small).record["plan"]["on_gpu"] == "scan, labels come back"
        assert card.held > 0
        held.clear()
        assert segmenter.segment(large).record["plan"]["on_gpu"] == "tiles"
        assert set(held) == {0}


@pytest.mark.parametrize("changes", [{"tile": (32, 32, 32)}, {"scheme": "whole"}], ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_the_plan_counts_what_the_card_holds(library, changes, batch):
    """No more is held than was planned for but for tables, and not much less; it is given back."""
    spec, card = toy_spec(working_bytes=0, spacing=(0.9, 1.0, 1.1), **changes), Cpu(library)
    volume = toy_volume(toy_geometry((40, 44, 36)))
    engine = Summing(spec, card)
    with Segmenter(spec, engine, batch=batch, gpu_memory=AMPLE, resident=Resident(engine, card)) as segmenter:
        ready = segmenter.ready(volume)
        segmenter.compute(ready)
        assert card.held > 0
        assert 0.6 * ready.plan.gpu_bytes < card.most < ready.plan.gpu_bytes + 20_000
    assert card.held == 0


def test_a_gpu_without_room_for_the_scan_takes_its_tiles_and_the_record_says_so(card):
    """The plan is otherwise the same, and so is the mask."""
    spec, volume = toy_spec(tile=(8, 8, 8), working_bytes=100), toy_volume()
    engine = Summing(spec, card)
    found = {}
    for room in (AMPLE, 200_000):
        with Segmenter(spec, engine, gpu_memory=room, resident=Resident(engine, card)) as segmenter:
            found[room] = segmenter.segment(volume)
    told = {room: one.record["plan"]["on_gpu"] for room, one in found.items()}
    assert told == {AMPLE: "scan, labels come back", 200_000: "tiles"}
    assert comparable(found[AMPLE].record) == comparable(found[200_000].record)
    np.testing.assert_array_equal(found[AMPLE].labels, found[200_000].labels)


def test_a_scan_that_takes_too_long_is_ended_between_passes(card):
    """As on the host."""
    spec = toy_spec()
    engine = Summing(spec, card)
    with (
        Segmenter(spec, engine, gpu_memory=AMPLE, resident=Resident(engine, card), timeout=0.0) as segmenter,
        pytest.raises(BudgetExceeded, match="E_TIMEOUT"),
    ):
        segmenter.segment(toy_volume())


def test_labels_alone_come_back(card):
    """Nothing of the size of logits leaves the card; where they are needed, they do, and the host decides."""
    spec, engine = toy_spec(), Summing(toy_spec(), card)
    with Segmenter(spec, engine, gpu_memory=AMPLE, resident=Resident(engine, card)) as segmenter:
        decided = segmenter.compute(segmenter.ready(toy_volume())).answer
        logits = segmenter.compute(segmenter.ready(toy_volume(), probabilities=True)).answer
    assert isinstance(decided, Decided)
    assert logits.shape[-1] == spec.output_channels


@pytest.mark.parametrize("attachments", [(), ("probabilities",)], ids=str)
def test_a_folder_of_scans_gives_the_files_of_the_host(card, tmp_path, attachments):
    """With one scan read beside the one computed and one written; maps come where they are asked for."""
    spec, engine = toy_spec(), Summing(toy_spec(), card)
    for seed in range(3):
        write_scan(tmp_path / "scans" / f"p{seed}", toy_volume(seed=seed))
    found, files = find_scans(tmp_path / "scans", spec), {}
    for name, resident in (("host", None), ("card", Resident(engine, card))):
        with Segmenter(spec, engine, gpu_memory=AMPLE, resident=resident) as segmenter:
            outcomes = list(run(segmenter, found, tmp_path / name, attachments=attachments))
        assert [type(outcome) for outcome in outcomes] == [Done] * 3
        files[name] = {path.name: path.read_bytes() for path in sorted((tmp_path / name).glob("*.nii.gz"))}
    assert files["card"] == files["host"]
    assert len(files["card"]) == 3 * (1 + len(attachments))
    record = json.loads((tmp_path / "card" / "p0_seg.json").read_text())
    assert record["plan"]["on_gpu"] == f"scan, {'logits' if attachments else 'labels'} come back"
