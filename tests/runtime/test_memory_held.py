"""What a plan promises of memory is kept: by every stage of a scan, by a folder of scans, by a refusal."""

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from brainseg_runtime.batch import Done, Failed, run
from brainseg_runtime.errors import BudgetExceeded
from brainseg_runtime.memory import MEGABYTE, WEIGHTS, Beside, Stages, most_fetched
from brainseg_runtime.rehearsal import Planned, rehearse
from brainseg_runtime.scans import Found, Scan, find_scans
from brainseg_runtime.segmenter import Segmenter, load
from brainseg_runtime.volume import Volume
from toys import toy_bundle, toy_engine, toy_geometry, toy_regions, toy_spec, toy_volume

SPEC = toy_spec(scheme="whole", regions=toy_regions(20.0))
SHAPE = (72, 76, 68)
PIECES = 3 * MEGABYTE
"""What does not grow with a scan, and is part of what a process takes: pieces of files, objects."""


def ball(tiles):
    """A round tumour, wherever the head is."""
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in tiles.shape[1:4]], indexing="ij", sparse=True)
    far = sum((a * a).astype(np.float32) for a in axes)
    logits = np.empty((1, *far.shape, 3), np.float32)
    for region, size in enumerate((0.16, 0.08, 0.04)):
        np.subtract(size, far, out=logits[0, ..., region])
    return logits


def opened(**options) -> Segmenter:
    return Segmenter(SPEC, toy_engine(SPEC, ball), **options)


def write_doubles(folder: Path, volume: Volume) -> None:
    """A scan whose files hold 8 bytes a voxel, twice what is computed with."""
    folder.mkdir(parents=True)
    for c, name in enumerate(("t1n", "t1c", "t2w", "t2f")):
        image = nibabel.Nifti1Image(volume.data[..., c].astype(np.float64), volume.geometry.affine)
        nibabel.save(image, folder / f"{folder.name}-{name}.nii.gz")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three scans, the second smaller than the others."""
    scans = tmp_path_factory.mktemp("scans")
    for n, shape in enumerate((SHAPE, (68, 72, 64), SHAPE)):
        write_doubles(scans / f"p{n}", toy_volume(toy_geometry(shape), seed=n))
    return scans


def watched(scan: Scan, out: Path, standing: dict[str, set[str]]) -> Scan:
    """A scan that notes whose results stand when it is read."""

    class Watched(Scan):
        def read(self) -> Volume:
            standing[self.id] = {path.name[:2] for path in out.glob("*_seg.json")}
            return super().read()

    return Watched(**vars(scan))


def peak(work):
    """The most that arrays took meanwhile, what is there already not counted; and what came out."""
    tracemalloc.start()
    try:
        outcome = work()
        return tracemalloc.get_traced_memory()[1], outcome
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("spacing", [1.0, 2.0])
@pytest.mark.parametrize("kinds", [(), ("probabilities",), ("gif", "report", "preview")], ids=str)
def test_no_stage_of_a_scan_takes_more_than_its_plan_says(tmp_path, spacing, kinds):
    """Files as stored, a channel on its way to the network's grid, logits on theirs to labels, pictures."""
    write_doubles(tmp_path / "p0", toy_volume(toy_geometry(SHAPE, spacing)))
    found = find_scans(tmp_path / "p0", SPEC)
    with opened() as segmenter:
        list(run(segmenter, found, tmp_path / "warm", attachments=kinds))  # what is imported is no scan's
        most, outcomes = peak(lambda: list(run(segmenter, found, tmp_path / "out", attachments=kinds)))
        plan = json.loads((tmp_path / "out" / "p0_seg.json").read_text())["plan"]
        outline = found.scans[0].outline()
        read, volume = peak(found.scans[0].read)
        beside, maps = Beside(outline.beside, "gif" in kinds), "probabilities" in kinds
        prepared, ready = peak(lambda: segmenter.ready(volume, probabilities=maps, beside=beside))
    assert isinstance(outcomes[0], Done)
    stages = ready.plan.stages
    assert read <= stages.fetched + PIECES
    assert stages.fetched <= most_fetched(outline, SPEC)
    assert volume.data.nbytes + prepared <= stages.fetched + PIECES
    assert most <= stages.most + PIECES
    assert plan["expected_memory_mb"] == round((segmenter.answering.process + stages.most) / MEGABYTE)


def test_a_single_scan_is_not_charged_for_others(folder, tmp_path):
    """It is computed where three of its kind would not fit; nothing waits, so nothing is told of the next."""
    with opened() as segmenter:
        found = find_scans(folder / "p0", SPEC)
        (planned,) = rehearse(segmenter, found)
    limit = (planned.plan["expected_memory_mb"] + 1) * MEGABYTE
    with opened(max_memory=limit) as segmenter:
        assert [type(outcome) for outcome in run(segmenter, found, tmp_path)] == [Done]
    assert "next_scan" not in json.loads((tmp_path / "p0_seg.json").read_text())


def test_a_folder_keeps_to_the_limit_by_reading_one_scan_after_the_other(folder, tmp_path):
    """Masks and plans are those of a folder with memory for three; the records say which it was."""
    ample, tight = tmp_path / "ample", tmp_path / "tight"
    found = find_scans(folder, SPEC)
    with opened() as segmenter:
        planned = list(rehearse(segmenter, found))
        list(run(segmenter, found, ample))
    limit = (max(one.plan["expected_memory_mb"] for one in planned) + 1) * MEGABYTE
    standing: dict[str, set[str]] = {}
    looking = Found(tuple(watched(scan, tight, standing) for scan in found.scans), {}, ())
    with opened(max_memory=limit) as segmenter:
        most, outcomes = peak(lambda: list(run(segmenter, looking, tight)))
        told = list(rehearse(segmenter, found))
    assert [type(outcome) for outcome in outcomes] == [Done] * 3
    assert standing == {"p0": set(), "p1": {"p0"}, "p2": {"p0", "p1"}}
    assert most <= limit - segmenter.answering.process
    for n in range(3):
        one, other = (json.loads((out / f"p{n}_seg.json").read_text()) for out in (ample, tight))
        assert one["mask"] == other["mask"]
        assert one["plan"] == other["plan"]
        assert isinstance(told[n], Planned)
        assert other.get("next_scan") == told[n].plan.get("next_scan")
        if n < 2:
            assert one["next_scan"].startswith("read beside")
            assert f"the limit is {limit // MEGABYTE} MB" in other["next_scan"]


def test_a_folder_with_memory_for_three_holds_what_it_says(folder, tmp_path):
    """The most that was held lies within the largest sum that a record tells."""
    with opened() as segmenter:
        most, _ = peak(lambda: list(run(segmenter, find_scans(folder, SPEC), tmp_path)))
    words = [json.loads((tmp_path / f"p{n}_seg.json").read_text())["next_scan"] for n in range(2)]
    told = max(int(word.split(", ")[1].split()[0]) for word in words)
    assert most <= told * MEGABYTE - segmenter.answering.process
    standing: dict[str, set[str]] = {}
    scans = tuple(watched(scan, tmp_path / "out", standing) for scan in find_scans(folder, SPEC).scans)
    with opened(max_memory=(told + 1) * MEGABYTE) as segmenter:
        list(run(segmenter, Found(scans, {}, ()), tmp_path / "out"))
    assert standing["p1"] == set()


@pytest.mark.parametrize("dry", [False, True])
def test_what_cannot_fit_is_refused_by_its_headers(folder, tmp_path, dry):
    """No voxel is inflated: files that end behind their headers are refused for their size, not for that."""
    for path in (folder / "p0").iterdir():
        (tmp_path / "p0").mkdir(exist_ok=True)
        (tmp_path / "p0" / path.name).write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found = find_scans(tmp_path / "p0", SPEC)
    ways = {True: rehearse, False: lambda segmenter, found: run(segmenter, found, tmp_path / "out")}
    codes = []
    for limit in (310, 10_000):
        with opened(max_memory=limit * MEGABYTE) as segmenter:
            most, outcomes = peak(lambda: list(ways[dry](segmenter, found)))
            codes += [outcome.error.code for outcome in outcomes if isinstance(outcome, Failed)]
        if limit == 310:
            assert most < PIECES
    assert codes == ["E_MEMORY", "E_TRUNCATED"]


def test_a_scan_that_failed_holds_no_memory(folder, tmp_path):
    """A folder of scans that are refused once they are read does not fill the memory with them."""

    def failing(tiles):
        raise BudgetExceeded("E_TIMEOUT", "it.", "None.") from ValueError(str(tiles.shape))

    with Segmenter(SPEC, toy_engine(SPEC, failing)) as segmenter:
        outcomes = list(run(segmenter, find_scans(folder, SPEC), tmp_path))
    for outcome in outcomes:
        assert isinstance(outcome, Failed)
        assert outcome.error.__traceback__ is None
        assert outcome.error.__cause__.__traceback__ is None


def test_every_engine_of_an_ensemble_counts(tmp_path):
    """Each holds its weights and an arena of its own, and their answers are added up."""
    spec = toy_spec(scheme="whole", working_bytes=500)
    members = [toy_bundle(tmp_path / name, replace(spec, name=name)) for name in ("one", "two", "three")]
    placed = toy_volume(toy_geometry(SHAPE))
    plans = []
    for count in (1, 2, 3):
        with load([member.folder for member in members[:count]], "ort") as segmenter:
            plans.append(segmenter.ready(placed).plan)
    arenas = [plan.stages.arena for plan in plans]
    assert arenas == [n * arenas[0] for n in (1, 2, 3)]
    more = arenas[0] + WEIGHTS * len(members[2].graph("fp32"))
    assert plans[2].bytes - plans[1].bytes == pytest.approx(more, abs=2)
    assert plans[1].stages.computed > plans[0].stages.computed
    with load(members[0].folder, "ort", tta=True) as segmenter:
        assert segmenter.ready(placed).plan.stages.computed == plans[1].stages.computed


def test_the_stages_of_a_scan_are_not_added_up():
    """While it is read nothing of it is computed; but what the engine took it keeps."""
    assert Stages(fetched=5, computed=7, arena=3, written=6).most == 10
