"""Measures against SimpleITK, their laws, lesions as BraTS counts them, and folders of masks."""

import csv
import json
import math

import numpy as np
import pytest
from brainseg_runtime.errors import ScanRefused
from brainseg_runtime.geometry import Geometry
from brainseg_runtime.nifti import write_labels
from brainseg_runtime.outputs import write
from brainseg_runtime.volume import Segmentation
from brainseg_trainer.cli import app
from brainseg_trainer.scoring.folder import find_answers, find_truths, score_folder
from brainseg_trainer.scoring.lesions import lesion_wise
from brainseg_trainer.scoring.measures import measure
from brainseg_trainer.scoring.summary import summarise
from brainseg_trainer.scoring.surfaces import surface_distances
from brainseg_trainer.scoring.tables import to_csv, to_json
from brainseg_trainer.task import read_spec
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from toys import toy_geometry
from typer.testing import CliRunner

SPACINGS = [(1.0, 1.0, 1.0), (0.49, 0.49, 7.0), (2.5, 0.7, 1.1)]
SPEC = read_spec(None)

blocks = arrays(bool, st.tuples(*[st.integers(1, 7)] * 3), fill=st.nothing())
spacings = st.tuples(*[st.floats(0.2, 8.0)] * 3)


def quiet(*_):
    """A report that nobody reads."""


def blobs(seed, shape=(24, 30, 18)):
    """Two masks of rough blobs that overlap in part and touch the grid's border."""
    rng = np.random.default_rng(seed)
    axes = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    masks = np.zeros((2, *shape), bool)
    for centre in rng.uniform(0, shape, (4, 3)):
        for mask in masks:
            away = np.linalg.norm((axes - centre - rng.normal(0, 1.5, 3)) / rng.uniform(2, 6, 3), axis=-1)
            mask |= away + rng.normal(0, 0.1, shape) < 1
    return masks[0], masks[1]


# The witness: SimpleITK.


def witness_distances(one, other, spacing):
    """Distances from the surface of one mask to that of the other, by ITK's contour and distance filters."""
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed (CI installs it)")

    def contour(mask):
        image = sitk.GetImageFromArray(np.pad(mask, 1).astype(np.uint8).transpose(2, 1, 0))
        image.SetSpacing(spacing)
        return sitk.BinaryContour(image, fullyConnected=False, backgroundValue=0, foregroundValue=1)

    surface, aim = contour(one), contour(other)
    field = sitk.SignedMaurerDistanceMap(aim, squaredDistance=False, useImageSpacing=True)
    return np.abs(sitk.GetArrayFromImage(field))[sitk.GetArrayFromImage(surface) > 0]


@pytest.mark.parametrize("spacing", SPACINGS, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_distances_are_those_of_simpleitk(seed, spacing):
    """HD95, ASSD and NSD agree to 1e-3 on voxels of any shape, at the grid's border too."""
    answer, truth = blobs(seed)
    there, back = witness_distances(answer, truth, spacing), witness_distances(truth, answer, spacing)
    measures = measure(answer, truth, spacing)
    assert measures.hd95_mm == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), abs=1e-3)
    assert measures.assd_mm == pytest.approx(np.concatenate([there, back]).mean(), abs=1e-3)
    assert measures.nsd_1mm == pytest.approx((np.concatenate([there, back]) <= 1).mean(), abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_overlap_is_that_of_simpleitk(seed):
    """Dice, IoU, sensitivity and precision agree to 1e-6."""
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed (CI installs it)")
    answer, truth = blobs(seed)
    witness = sitk.LabelOverlapMeasuresImageFilter()
    witness.Execute(*[sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in (answer, truth)])
    measures = measure(answer, truth, (1.0, 1.0, 1.0))
    assert measures.dice == pytest.approx(witness.GetDiceCoefficient(), abs=1e-6)
    assert measures.iou == pytest.approx(witness.GetJaccardCoefficient(), abs=1e-6)
    assert measures.sensitivity == pytest.approx(1 - witness.GetFalseNegativeError(1), abs=1e-6)
    assert measures.precision == pytest.approx(1 - witness.GetFalseDiscoveryRate(1), abs=1e-6)


# What is defined where a mask is empty.


def test_two_empty_masks_agree():
    """Nothing was there and nothing was found: as good as can be; ratios of nothing have no value."""
    nothing = np.zeros((5, 6, 7), bool)
    measures = measure(nothing, nothing, (1.0, 1.0, 1.0)).as_dict()
    ratios = {name: measures.pop(name) for name in ("sensitivity", "precision", "volume_error")}
    assert all(math.isnan(ratio) for ratio in ratios.values())
    ones = {name for name, value in measures.items() if value == 1}
    assert ones == {"dice", "iou", "nsd_1mm", "lesion_dice"}
    assert all(value == 0 for name, value in measures.items() if name not in ones)


@pytest.mark.parametrize("missed", [True, False])
def test_one_empty_mask_is_as_bad_as_can_be(missed):
    """A tumour that was missed, or made up, costs 374 mm, as in BraTS."""
    nothing, tumour = np.zeros((9, 9, 9), bool), np.zeros((9, 9, 9), bool)
    tumour[2:7, 2:7, 2:7] = True
    pair = (nothing, tumour) if missed else (tumour, nothing)
    measures = measure(*pair, (1.0, 1.0, 1.0))
    assert (measures.dice, measures.iou, measures.nsd_1mm, measures.lesion_dice) == (0, 0, 0, 0)
    assert (measures.hd95_mm, measures.assd_mm, measures.lesion_hd95_mm) == (374, 374, 374)
    assert measures.volume_error_ml == pytest.approx(-0.125 if missed else 0.125)


# Laws.


@settings(max_examples=60, deadline=None)
@given(st.data(), spacings)
def test_agreement_has_no_direction(data, spacing):
    """Truth and answer may change places: overlap and distances stay, sensitivity becomes precision."""
    one = data.draw(blocks)
    other = data.draw(arrays(bool, one.shape))
    there, back = measure(one, other, spacing), measure(other, one, spacing)
    for name in ("dice", "iou", "hd95_mm", "assd_mm", "nsd_1mm"):
        assert getattr(there, name) == pytest.approx(getattr(back, name), rel=1e-12)
    assert there.sensitivity == pytest.approx(back.precision, nan_ok=True)
    assert there.volume_error_ml == pytest.approx(-back.volume_error_ml)


@settings(max_examples=60, deadline=None)
@given(st.data(), spacings, st.integers(1, 12), st.permutations(range(3)))
def test_where_the_masks_lie_does_not_matter(data, spacing, margin, axes):
    """Padding, mirroring and reordering of axes change no measure."""
    one = data.draw(blocks)
    other = data.draw(arrays(bool, one.shape))
    plain = measure(one, other, spacing).as_dict()
    turned = [np.pad(mask, margin)[::-1, :, ::-1].transpose(axes) for mask in (one, other)]
    moved = measure(*turned, tuple(spacing[axis] for axis in axes)).as_dict()
    # Beyond the grid's border there is room for lesions to touch once dilated.
    for name in set(plain) - {"lesion_dice", "lesion_hd95_mm"}:
        assert moved[name] == pytest.approx(plain[name], rel=1e-9, nan_ok=True), name


@settings(max_examples=40, deadline=None)
@given(blocks, spacings)
def test_a_mask_agrees_with_itself(mask, spacing):
    """Distances are 0 and overlaps 1."""
    measures = measure(mask, mask, spacing)
    assert (measures.dice, measures.iou, measures.nsd_1mm) == (1, 1, 1)
    assert (measures.hd95_mm, measures.assd_mm, measures.volume_error_ml) == (0, 0, 0)


def test_distances_are_in_millimetres():
    """A slab moved by one slice of 7 mm lies 7 mm away, one moved by a pixel half a millimetre."""
    slab = np.zeros((9, 9, 9), bool)
    slab[3:6, 3:6, 4] = True
    spacing = (0.5, 0.5, 7.0)
    assert surface_distances(slab, np.roll(slab, 1, 2), spacing).hd95 == pytest.approx(7.0)
    assert surface_distances(slab, np.roll(slab, 1, 0), spacing).hd95 == pytest.approx(0.5)


# Lesions, as BraTS 2023 counts them.


def lesions(*boxes, shape=(60, 40, 40)):
    """A mask of cubes: (start along I, side) each."""
    mask = np.zeros(shape, bool)
    for start, side in boxes:
        mask[start : start + side, 10 : 10 + side, 10 : 10 + side] = True
    return mask


MM = (1.0, 1.0, 1.0)


def literal_rule(answer, truth, spacing):
    """The rule as it is written down: dilate the truth, join, then dilate each lesion and look around."""
    faces_edges, corners = ndimage.generate_binary_structure(3, 2), np.ones((3, 3, 3))
    joined, count = ndimage.label(ndimage.binary_dilation(truth, faces_edges, iterations=3), corners)
    pieces, found = ndimage.label(answer, corners)
    near, scores = set(), []
    for number in range(1, count + 1):
        lesion = truth & (joined == number)
        touched = set(np.unique(pieces[ndimage.binary_dilation(lesion, faces_edges, iterations=3)])) - {0}
        near |= touched
        if lesion.sum() * np.prod(spacing) > 50:
            mine = np.isin(pieces, list(touched))
            both = 2 * (mine & lesion).sum() / (mine.sum() + lesion.sum())
            scores.append((both, surface_distances(mine, lesion, spacing).hd95))
    scores += [(0, 374)] * len(set(range(1, found + 1)) - near)
    return np.mean(scores, axis=0) if scores else (1, 0)


@pytest.mark.parametrize("seed", range(8))
def test_lesions_are_those_of_the_rule_as_written(seed):
    """Dilating the truth once gives what dilating lesion after lesion gives, at the grid's border too."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=(2, 40, 44, 30)), (0, 1.5, 1.5, 1.5))
    answer, truth = smooth > np.quantile(smooth, 0.985)
    spacing = SPACINGS[seed % 3]
    score = lesion_wise(answer, truth, spacing)
    assert (score.dice, score.hd95) == pytest.approx(tuple(literal_rule(answer, truth, spacing)))


def test_a_missed_lesion_counts_as_much_as_a_large_one():
    """One of two found: half of its Dice, half of 374 mm."""
    found = lesion_wise(lesions((5, 8)), lesions((5, 8), (40, 4)), MM)
    assert (found.dice, found.hd95) == (0.5, 187.0)
    assert (found.lesions, found.found, found.false) == (2, 1, 0)


def test_a_made_up_lesion_counts_too():
    """One lesion found and one made up: half."""
    found = lesion_wise(lesions((5, 8), (40, 1)), lesions((5, 8)), MM)
    assert (found.dice, found.hd95, found.false) == (0.5, 187.0, 1)


def test_lesions_whose_dilations_touch_are_one():
    """Six voxels of gap are bridged by three steps from each side; eight are not."""
    assert lesion_wise(lesions((5, 6)), lesions((5, 6), (17, 6)), MM).lesions == 1
    assert lesion_wise(lesions((5, 6)), lesions((5, 6), (19, 6)), MM).lesions == 2


def test_pieces_near_a_lesion_belong_to_it_whole():
    """A piece that only touches the dilated lesion is no false one, and is not cut."""
    near = lesion_wise(lesions((5, 8), (15, 8)), lesions((5, 8)), MM)
    assert near.false == 0
    assert near.dice == pytest.approx(2 * 512 / (1024 + 512))


def test_small_lesions_of_the_truth_do_not_count():
    """A lesion of 27 mm3 is neither missed nor, where it is found, false; at 2 mm spacing it counts."""
    truth = lesions((5, 8), (40, 3))
    assert lesion_wise(lesions((5, 8)), truth, MM).dice == 1.0
    assert lesion_wise(lesions((5, 8), (40, 3)), truth, MM) == lesion_wise(
        lesions((5, 8)), lesions((5, 8)), MM
    )
    assert lesion_wise(lesions((5, 8)), truth, (2.0, 2.0, 2.0)).dice == 0.5


# Over scans.


def test_a_summary_holds_what_has_a_value():
    """NaN is left out; the interval holds the mean, narrows with more scans, and is the same each time."""
    few, many = summarise([0.1, math.nan, 0.9]), summarise([0.1, 0.9] * 50)
    assert (few.count, few.mean, few.median) == (2, 0.5, 0.5)
    assert few.low < many.low < 0.5 < many.high < few.high
    assert summarise([0.1, 0.9] * 50) == many
    assert math.isnan(summarise([math.nan]).mean)
    assert summarise([]).count == 0


def test_the_interval_covers_the_mean_as_often_as_it_says():
    """Of 200 samples of 40 scans, 90 to 99 in 100 intervals hold the true mean."""
    rng = np.random.default_rng(3)
    held = [(s := summarise(rng.normal(0.8, 0.1, 40))).low <= 0.8 <= s.high for _ in range(200)]
    assert 0.90 <= np.mean(held) <= 0.99


# Folders.


def labelled(seed, shape=(20, 24, 18)):
    """A label volume with all three labels."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint8)
    labels[3:15, 4:16, 3:14] = 2
    labels[5:11, 6:12, 5:11] = rng.choice([1, 3], (6, 6, 6))
    return labels


@pytest.fixture
def folders(tmp_path):
    """Results of two scans, written by the runtime, and their truth as label images alone."""
    for n in range(2):
        geometry = toy_geometry()
        answer = Segmentation(
            labelled(n),
            geometry,
            SPEC.label_names,
            SPEC.region_labels,
            scan=f"P{n}",
            record={"seconds": {"infer": 1.0 + n}, "options": {}},
        )
        write(answer, tmp_path / "out", label_scheme="brats2021" if n else "brats2023")
        truth = np.roll(labelled(n), 1, 0)
        write_labels(tmp_path / "truth" / f"P{n}" / f"P{n}-seg.nii.gz", truth, geometry)
    return tmp_path / "out", tmp_path / "truth"


def scores_of(folders):
    return score_folder(find_answers(folders[0]), find_truths(folders[1], SPEC), SPEC, quiet)


def test_masks_are_compared_by_the_names_of_their_labels(folders):
    """A mask of BraTS 2021, whose ET is 4, scores as one of 2023: its JSON says what 4 is."""
    for score in scores_of(folders):
        expected = measure(
            labelled(int(score.scan[1])) == 3,
            np.roll(labelled(int(score.scan[1])), 1, 0) == 3,
            (1.0, 1.0, 1.0),
        )
        assert score.regions["ET"] == expected
        assert set(score.regions) == {"WT", "TC", "ET"}


def test_masks_of_other_programs_need_no_json(folders):
    """Without a JSON the values speak for themselves, and truth in a folder called labels needs no _seg."""
    expected = scores_of(folders)[:1]
    for path in folders[0].glob("*.json"):
        path.unlink()
    (folders[0] / "P1_seg.nii.gz").unlink()
    labels = folders[1] / "labelsTr"
    labels.mkdir()
    for n in range(2):
        (folders[1] / f"P{n}" / f"P{n}-seg.nii.gz").rename(labels / f"P{n}.nii.gz")
    assert scores_of(folders) == expected


def test_a_mask_without_truth_is_refused(folders):
    """Scores over some of the masks would not be the folder's scores."""
    (folders[1] / "P1" / "P1-seg.nii.gz").unlink()
    with pytest.raises(ScanRefused, match="P1") as refusal:
        scores_of(folders)
    assert refusal.value.code == "E_TRUTH_MISSING"


def test_a_truth_on_another_grid_is_refused(folders):
    """Voxel by voxel is no comparison where the grids differ."""
    grid = toy_geometry()
    shift = np.eye(4)
    shift[0, 3] = 2.0
    path = folders[1] / "P0" / "P0-seg.nii.gz"
    write_labels(path, labelled(0), Geometry(grid.shape, shift @ grid.affine))
    with pytest.raises(ScanRefused) as refusal:
        scores_of(folders)
    assert refusal.value.code == "E_GEOMETRY_MISMATCH"


def test_files_hold_every_measure(folders):
    """JSON and CSV hold the same numbers; what has no value is null and empty."""
    scores = scores_of(folders)
    contents = json.loads(to_json(scores))
    rows = list(csv.DictReader(to_csv(scores).splitlines()))
    assert len(rows) == 6
    for row in rows:
        for name, value in contents["scans"][row["scan"]][row["region"]].items():
            assert (float(row[name]) if row[name] else None) == value
    dice = [float(row["dice"]) for row in rows if row["region"] == "TC"]
    assert contents["summary"]["TC"]["dice"]["mean"] == pytest.approx(np.mean(dice))


def test_the_verb_shows_dice_seconds_and_files(folders, tmp_path):
    """``brainseg-train score`` prints both tables and names a mask and its JSON."""
    arguments = [
        "score",
        *map(str, folders),
        "--json",
        str(tmp_path / "s.json"),
        "--csv",
        str(tmp_path / "s.csv"),
    ]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert f"{scores_of(folders)[0].regions['WT'].dice:.4f}" in result.output
    assert "infer     1.500" in result.output
    assert str(folders[0] / "P0_seg.nii.gz") in result.output
    assert str(folders[0] / "P0_seg.json") in result.output
    assert json.loads((tmp_path / "s.json").read_text())["scans"].keys() == {"P0", "P1"}
    assert (tmp_path / "s.csv").read_text().startswith("scan,region,dice,")
