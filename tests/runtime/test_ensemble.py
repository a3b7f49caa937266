"""Several answers averaged: mirror images of a tile, several models, and what makes no ensemble."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest
from brainseg_runtime.engines.mean import MeanEngine, mirrors_of
from brainseg_runtime.ensemble import joint_spec
from brainseg_runtime.errors import BudgetExceeded, UsageRefused
from brainseg_runtime.segmenter import Segmenter, load
from brainseg_runtime.spec import Region
from brainseg_runtime.volume import Volume
from toys import toy_bundle, toy_engine, toy_spec, toy_volume, write_scan

SPEC = toy_spec()


def lopsided(tiles):
    """Logits that depend on where a voxel stands in its tile and on the neighbour above it."""
    i, j, k = (np.arange(n, dtype=np.float32) for n in tiles.shape[1:4])
    place = i[:, None, None] + 2 * j[:, None] - 3 * k
    shifted = np.roll(tiles, 1, axis=1)
    return (tiles + shifted)[..., :3] + place[..., None] / 10


def mirrored(tiles):
    """The mean over all eight mirror images, written down one by one."""
    total = np.zeros((*tiles.shape[:4], 3))
    for a in (1, -1):
        for b in (1, -1):
            for c in (1, -1):
                total += lopsided(tiles[:, ::a, ::b, ::c])[:, ::a, ::b, ::c]
    return total / 8


def test_mirror_images_are_averaged():
    """Eight of them, each turned back."""
    tiles = np.random.default_rng(0).normal(size=(2, 8, 12, 4, 4)).astype(np.float32)
    engine = MeanEngine([toy_engine(SPEC, lopsided)], mirrors_of(SPEC))
    np.testing.assert_allclose(engine.infer(tiles), mirrored(tiles), atol=1e-5)


def test_slices_are_mirrored_within_themselves():
    """A network that sees slices has four images, none of which turns the stack over."""
    thin = toy_spec(tile=(16, 16, 1), divisor=(4, 4, 1))
    assert mirrors_of(thin) == ((), (1,), (2,), (1, 2))


def test_an_answer_over_mirror_images_has_no_side():
    """A mirrored scan gets the mirrored mask, whatever the network itself thinks of sides."""
    volume = toy_volume()
    flipped = Volume(np.ascontiguousarray(volume.data[::-1]), volume.geometry)
    even = toy_spec(tile=(24, 24, 24), divisor=(1, 1, 1))
    with Segmenter(even, MeanEngine([toy_engine(even, lopsided)], mirrors_of(even))) as segmenter:
        one, other = (segmenter.segment(v).labels for v in (volume, flipped))
    assert len(np.unique(one)) > 1
    assert (one[::-1] == other).mean() > 0.999
    with Segmenter(even, toy_engine(even, lopsided)) as segmenter:
        one, other = (segmenter.segment(v).labels for v in (volume, flipped))
    assert (one[::-1] == other).mean() < 0.99


def test_several_networks_are_averaged():
    """The mean of their logits; closing closes all."""
    tiles = np.random.default_rng(0).normal(size=(1, 8, 4, 4, 4)).astype(np.float32)
    closed = []
    members = [toy_engine(SPEC, lambda t, n=n: np.full((*t.shape[:4], 3), n, np.float32)) for n in (1, 2, 6)]
    for member in members:
        member.close = lambda: closed.append(1)
    engine = MeanEngine(members)
    np.testing.assert_allclose(engine.infer(tiles), 3)
    assert engine.identity == members[0].identity
    engine.close()
    assert len(closed) == 3


def test_bundles_answer_as_one(tmp_path):
    """The record names both, and a bundle with itself answers as alone."""
    one = toy_bundle(tmp_path / "one", replace(SPEC, name="one"))
    two = toy_bundle(tmp_path / "two", replace(SPEC, name="two"))
    volume = toy_volume()
    with load([one.folder, two.folder]) as both, load(one.folder) as alone:
        answer, single = both.segment(volume), alone.segment(volume)
    np.testing.assert_array_equal(answer.labels, single.labels)
    assert answer.record["model"]["name"] == "one + two"
    assert answer.record["model"]["sha256"] not in (one.sha256, two.sha256)
    named = [member["sha256"] for member in answer.record["options"]["ensemble"]]
    assert named == [one.sha256, two.sha256]
    assert "ensemble" not in single.record["options"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"spacing": (2.0, 1.0, 1.0)}, "spacing"),
        ({"anatomy": "head"}, "anatomy"),
        ({"normalisation": "none"}, "normalisation"),
        ({"regions": (Region("WT", (1, 2, 3)), Region("CORE", (1, 3)), Region("ET", (3,)))}, "regions"),
    ],
)
def test_models_of_different_tasks_make_no_ensemble(change, word):
    """Refused by what differs; names, tiles and thresholds may."""
    with pytest.raises(UsageRefused, match=rf"E_USAGE.*differ in {word}"):
        joint_spec([SPEC, replace(SPEC, **change)])
    tuned = replace(
        SPEC, name="b", tile=(8, 8, 8), regions=tuple(replace(r, threshold=0.3) for r in SPEC.regions)
    )
    joint = joint_spec([SPEC, tuned])
    assert [region.threshold for region in joint.regions] == pytest.approx([0.4] * 3)
    assert joint.tile == SPEC.tile


def test_the_command_line_takes_several_models_and_mirrors(tmp_path, monkeypatch, capfd):
    """``-m A -m B --tta``: one mask a scan, and JSON says how it was made."""
    import sys

    from brainseg_runtime import cli

    write_scan(tmp_path / "scans" / "p0", toy_volume())
    folders = [toy_bundle(tmp_path / name, replace(SPEC, name=name)).folder for name in ("one", "two")]
    models = [word for folder in folders for word in ("-m", str(folder))]
    asked = [str(tmp_path / "scans"), *models, "--tta", "-o", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["brainseg-infer", *asked])
    with pytest.raises(SystemExit) as ended:
        cli.infer_main()
    assert ended.value.code == 0, capfd.readouterr()
    record = json.loads((tmp_path / "out" / "p0_seg.json").read_bytes())
    assert record["options"]["tta"]
    assert [member["name"] for member in record["options"]["ensemble"]] == ["one", "two"]


@pytest.mark.parametrize(("engines", "mirrors"), [(1, mirrors_of(SPEC)), (4, ((),)), (2, ((), (1,)))])
def test_time_is_looked_at_between_mirror_images_and_between_models(engines, mirrors):
    """What has begun ends; the next image, or the next model's, is not begun."""
    spec = toy_spec(tile=(32, 32, 32))
    begun = []

    def slow(tiles):
        begun.append(1)
        time.sleep(0.3)
        return tiles[..., :3]

    mean = MeanEngine([toy_engine(spec, slow) for _ in range(engines)], mirrors)
    with (
        Segmenter(spec, mean, timeout=0.4) as segmenter,
        pytest.raises(BudgetExceeded, match="E_TIMEOUT"),
    ):
        segmenter.compute(replace(segmenter.ready(toy_volume()), seconds={}))
    assert 0 < len(begun) <= 2 < engines * len(mirrors)
