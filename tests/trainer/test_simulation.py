"""Simulated heads: what a key decides, what lies inside the brain, and what real ingredients must be."""

from dataclasses import replace

import numpy as np
import pytest
from brainseg_runtime.errors import ScanRefused, UsageRefused
from brainseg_runtime.scans import find_scans
from brainseg_trainer.fit import fit
from brainseg_trainer.run import RunFolder
from brainseg_trainer.simulation import HELD_OUT, TRAINING
from brainseg_trainer.simulation.appearance import PARTS, measured
from brainseg_trainer.simulation.ingredients import (
    HALF_MM,
    ORIGIN_MM,
    SPACING_MM,
    TISSUES,
    Ingredients,
    gather,
)
from brainseg_trainer.task import glioma_spec

from .conftest import quiet

jax = pytest.importorskip("jax", reason="brainseg-trainer[jax] is not installed (CI installs it)")

SHAPE = (48, 48, 48)
EDGE = 32


def ball(shape, radius, centre=(0, 0, 0)):
    """True within a radius of a place about the middle, in voxels."""
    axes = [np.arange(n) - (n - 1) / 2 - c for n, c in zip(shape, centre, strict=True)]
    return sum(np.square(a) for a in np.meshgrid(*axes, indexing="ij")) < radius**2


@pytest.fixture(scope="module")
def made():
    """Ingredients as plain as can be: a ball of a brain, ball-shaped tumours, crops of them."""
    rng = np.random.default_rng(0)
    head = np.full([2 * half for half in HALF_MM], TISSUES.index("surroundings"), np.uint8)
    for radius, tissue in ((42, "fluid"), (40, "cortex"), (36, "white"), (8, "ventricle")):
        head[ball(head.shape, radius)] = TISSUES.index(tissue)
    tumour = np.zeros((128, 128, 128), np.uint8)
    # Where (15, 10, 5) mm about the middle of the brain lies in the label volumes' 240 x 240 x 155 mm.
    middle = (np.array([15, 10, 5]) + ORIGIN_MM) / SPACING_MM - 0.5
    apart = (np.moveaxis(np.indices(tumour.shape), 0, -1) - middle) * SPACING_MM
    for radius, label in ((18, 2), (11, 3), (6, 1)):
        tumour[np.linalg.norm(apart, axis=-1) < radius] = label
    labels = np.zeros((3, EDGE, EDGE, EDGE), np.uint8)
    for radius, label in ((9, 2), (6, 3), (4, 1)):
        labels[:, ball((EDGE,) * 3, radius)] = label
    means = np.array([[0.5, 0.4, -0.4, 0], [0, 0, 2, 1], [0, 0, 1, 2], [0, 2.5, 1, 2]], np.float32)
    tissue = rng.choice([-1.5, -0.3, 0.6], size=(*labels.shape, 1)) * np.array([1, 0.8, -1, 0.6])
    images = np.where(labels[..., None] > 0, means[labels], tissue).astype(np.float32)
    images += rng.normal(0, 0.1, images.shape).astype(np.float32)
    inside = np.ones(labels.shape, bool)
    return Ingredients(
        heads=head[None],
        tumours=tumour[None],
        centroids=np.array([[15, 10, 5]], np.float32),
        radii=np.array([18], np.float32),
        crops=np.rint(images / 0.06).astype(np.int8),
        crop_labels=labels,
        crop_inside=inside,
        crop_places=np.array([[15, 10, 5], [-15, 0, 0], [0, -15, 10]], np.float32),
        appearances=measured(images, labels, inside),
    )


@pytest.fixture(scope="module")
def draw(made):
    """Draws four heads of a setting; compiled once for all of them."""
    from brainseg_trainer.simulation.heads import generator
    from brainseg_trainer.simulation.setting import USUAL

    def heads(seed=0, **setting):
        keys = jax.random.split(jax.random.key(seed), 4)
        images, labels = generator(made, SHAPE, USUAL._replace(**setting))(keys)
        return np.asarray(images), np.asarray(labels)

    return heads


def test_a_key_decides_a_head(draw):
    """The same key draws the same head, another one another."""
    one, two, other = draw(1), draw(1), draw(2)
    for a, b, c in zip(one, two, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a != c).any()


def test_heads_are_scans_as_prepared(draw):
    """Z-scored over the brain, 0 outside, tumour inside only, labels 1 to 3, finite."""
    images, labels = draw(3, absent=0.0, pasted=0.0, whole=0.0, tumour=1.0)
    assert np.isfinite(images).all()
    for image, label in zip(images, labels, strict=True):
        brain = (image != 0).any(axis=-1)
        assert 0.05 < brain.mean() < 0.9
        np.testing.assert_allclose(image[brain].mean(axis=0), 0, atol=1e-3)
        np.testing.assert_allclose(image[brain].std(axis=0), 1, atol=1e-3)
        assert not label[~brain].any()
        assert set(np.unique(label)) <= {0, 1, 2, 3}
        assert (label > 0).any()


def test_there_is_no_tumour_where_none_is_wanted(draw):
    """A healthy setting has no label; crops put some back."""
    none = {"tumour": 0.0, "grown": 0.0, "pasted": 0.0}
    assert not draw(4, **none)[1].any()
    assert draw(4, **none | {"pasted": 1.0})[1].any()


def test_a_tumour_can_grow(draw):
    """Without an expert's shape: oedema about a core that enhances, and no fluid is tumour."""
    _, labels = draw(8, tumour=0.0, grown=1.0, pasted=0.0)
    assert {2, 3} <= set(np.unique(labels))
    assert 0 < (labels > 0).mean() < 0.2


def test_a_head_can_keep_its_skull(draw):
    """Then there is more than the brain, z-scored over all of it; the tumour is the same."""
    plain = {"absent": 0.0, "pasted": 0.0}
    (bare, labels), (whole, same) = draw(9, whole=0.0, **plain), draw(9, whole=1.0, **plain)
    np.testing.assert_array_equal(labels, same)
    for brain, head in zip((bare != 0).any(axis=-1), whole, strict=True):
        kept = (head != 0).any(axis=-1)
        assert kept.mean() > 1.2 * brain.mean()
        assert kept[brain].all()
        np.testing.assert_allclose(head[kept].mean(axis=0), 0, atol=1e-3)
        np.testing.assert_allclose(head[kept].std(axis=0), 1, atol=1e-3)


def test_only_what_may_lack_is_absent(draw):
    """Without T1 and T2 these are 0 everywhere; T1c and FLAIR are always there."""
    images, _ = draw(5, absent=1.0)
    assert not images[..., [0, 2]].any()
    assert (images[..., [1, 3]] != 0).any(axis=(1, 2, 3)).all()
    assert (draw(5, absent=0.0)[0] != 0).any(axis=(1, 2, 3)).all()


def test_tumours_lie_near_where_they_were(draw):
    """Or mirrored: the label volumes and the heads have one frame."""
    _, labels = draw(6, tumour=1.0, second=0.0, grown=0.0, pasted=0.0)
    for label in labels:
        middle = (np.argwhere(label > 0).mean(axis=0) - (np.array(SHAPE) - 1) / 2) * SPACING_MM
        assert np.linalg.norm(np.abs(middle) - [15, 10, 5]) < 25
        assert middle[1] > -10


def test_a_lesion_looks_as_it_was_measured(draw):
    """With all variation off, oedema is bright on FLAIR and the rim on T1c, beside white matter."""
    plain = {"wide": 0.0, "jitter": 0.0, "distractors": 0.0, "shading": 0.0, "noise": 0.0, "whole": 0.0}
    images, labels = draw(7, tumour=1.0, absent=0.0, pasted=0.0, **plain)
    healthy = (labels == 0) & (images != 0).any(axis=-1)
    assert images[labels == 2, 3].mean() > images[healthy, 3].mean() + 1
    assert images[labels == 3, 1].mean() > images[healthy, 1].mean() + 1


def test_tiles_are_parts_of_a_head():
    """Around tumour where it is wanted and there is some, else anywhere; image and labels of one place."""
    from brainseg_trainer.simulation.heads import cut

    shape, tile = (20, 24, 28), (8, 8, 8)
    places = np.arange(np.prod(shape)).reshape(shape)
    image = np.stack([places] * 4, axis=-1).astype(np.float32)
    tumour = (places == places[3, 20, 14]).astype(np.uint8)
    found = set()
    for seed in range(20):
        key = jax.random.key(seed)
        for labels, often in ((tumour, 1.0), (0 * tumour, 1.0), (tumour, 0.0)):
            part, known = map(np.asarray, cut(key, image, labels, tile=tile, tumour=often))
            i, j, k = np.unravel_index(int(part[0, 0, 0, 0]), shape)
            there = np.s_[i : i + 8, j : j + 8, k : k + 8]
            np.testing.assert_array_equal(part, image[there])
            np.testing.assert_array_equal(known, labels[there])
            assert known.any() or not (labels.any() and often)
            if not often:
                found.add((i, j, k))
    assert len(found) > 15


def test_ingredients_survive_their_file(made, tmp_path):
    """Saved and loaded they are the same; anything else is refused."""
    made.save(tmp_path / TRAINING)
    again = Ingredients.load(tmp_path / TRAINING)
    np.testing.assert_array_equal(made.tumours, again.tumours)
    np.testing.assert_array_equal(made.appearances.roots, again.appearances.roots)
    (tmp_path / TRAINING).write_bytes(b"nothing")
    with pytest.raises(ScanRefused, match="E_INPUT_MISSING"):
        Ingredients.load(tmp_path / TRAINING)


def test_appearances_are_those_of_the_crops(made):
    """Means and covariances are what the crops hold, part by part."""
    found = made.appearances
    assert found.known.all()
    for part, label in (("necrosis", 1), ("oedema", 2), ("enhancing", 3)):
        values = made.crops[0][made.crop_labels[0] == label] * np.float32(0.06)
        p = PARTS.index(part)
        np.testing.assert_allclose(found.means[0, p], values.mean(axis=0), atol=0.02)
        covariance = found.roots[0, p] @ found.roots[0, p].T
        np.testing.assert_allclose(covariance, np.cov(values.T), atol=0.01)
    fluid, grey, white = found.means[0, :3]
    assert fluid[0] < grey[0] < white[0]
    assert fluid[2] > grey[2] > white[2]


def test_a_network_trains_on_simulated_heads(made, small_config, tmp_path):
    """``fit`` takes a simulation's folder: heads to train on, the scans beside them held out."""
    from brainseg_trainer.simulation.scans import write_held_out

    data = tmp_path / "simulation"
    made.save(data / TRAINING)
    made.save(data / HELD_OUT)
    assert len(write_held_out(made, data, 1, quiet)) == 3
    config = replace(
        small_config,
        task=replace(small_config.task, optional=("t1", "t2")),
        data=replace(small_config.data, spacing=SPACING_MM, tile=(32, 32, 32)),
        training=replace(small_config.training, steps=2, validate_every=2, warmup=0),
    )
    spec = glioma_spec(config, (8, 8, 8))
    assert len(find_scans(data, spec).scans) == 3
    run = RunFolder(tmp_path / "run")
    run.begin(config)
    fit(data, run, quiet)
    found = run.read_metrics()["validation"]
    assert set(found["scans"]) == {"other-000", "crops-000", "healthy-000"}
    assert found["trained_on"] == []
    others = {
        "E_SPACING": replace(config, data=replace(config.data, spacing=(1.0, 1.0, 1.0))),
        "no distances": replace(config, loss=replace(config.loss, kind="boundary")),
        "no folds": replace(config, data=replace(config.data, fold=2)),
        "does not fit": replace(config, data=replace(config.data, tile=(96, 96, 96))),
    }
    for n, (words, other) in enumerate(others.items()):
        begun = RunFolder(tmp_path / f"other{n}")
        begun.begin(other)
        with pytest.raises((ScanRefused, UsageRefused), match=words):
            fit(data, begun, quiet)


def test_a_step_has_the_same_batch_wherever_a_run_begins(made, small_config, tmp_path):
    """Heads are kept from step to step; a run that goes on from a checkpoint draws them again."""
    from brainseg_trainer.simulation.scans import SimulatedBatches

    made.save(tmp_path / TRAINING)
    config = replace(small_config, data=replace(small_config.data, spacing=SPACING_MM, tile=(32, 32, 32)))
    going, resumed = (
        SimulatedBatches(tmp_path / TRAINING, glioma_spec(config, (8, 8, 8)), config) for _ in range(2)
    )
    for step in range(3):
        images, truth = going(step)
    going(0, altered=False)
    for kept, again in zip((images, truth), resumed(2), strict=True):
        np.testing.assert_array_equal(kept, again)


def test_truth_is_as_the_task_wants_it(made, small_config, tmp_path):
    """A softmax task gets a mask a label that add up to 1, and only the modalities that it has."""
    from brainseg_trainer.simulation.scans import SimulatedBatches

    made.save(tmp_path / TRAINING)
    config = replace(
        small_config,
        task=replace(small_config.task, modalities=("flair", "t1c"), activation="softmax"),
        loss=replace(small_config.loss, kind="dice_ce"),
        data=replace(small_config.data, spacing=SPACING_MM, tile=(32, 32, 32)),
    )
    batches = SimulatedBatches(tmp_path / TRAINING, glioma_spec(config, (8, 8, 8)), config)
    images, truth = (np.asarray(part) for part in batches(3))
    assert images.shape == (2, 32, 32, 32, 2)
    assert truth.shape == (2, 32, 32, 32, 4)
    np.testing.assert_array_equal(truth.sum(axis=-1), 1)
    np.testing.assert_array_equal(batches(3)[0], images)
    assert (np.asarray(batches(4)[0]) != images).any()
    assert (np.asarray(batches(3, altered=False)[0]) != images).any()


@pytest.mark.data
def test_real_ingredients_lie_in_one_frame(data_root):
    """Crops end at the brain's edge on the side that their place is on: axes and mirrors are right."""
    lesions = data_root / "brats2020-lesion-cubes"
    training, held_out = gather(data_root / "synthseg-labels", data_root / "mni152-nilearn", lesions)
    assert (len(training.heads), len(training.tumours), len(training.crops)) == (4, 200, 304)
    assert (len(held_out.heads), len(held_out.tumours), len(held_out.crops)) == (5, 39, 68)
    towards, places = [], []
    for path in sorted(lesions.glob("train_*.npz")):
        with np.load(path) as file:
            given = (file["inside_crop"] > 0)[:, ::-1, ::-1]
        for mask in given:
            inside = training.crop_inside[len(towards)]
            outside = np.argwhere(mask & ~inside)
            few = len(outside) < 300
            towards.append([np.nan] * 3 if few else outside.mean(axis=0) - np.argwhere(mask).mean(axis=0))
    places = training.crop_places
    kept = ~np.isnan(towards).any(axis=1)
    correlation = np.corrcoef(np.array(towards)[kept].T, places[kept].T)[:3, 3:]
    assert (np.diag(correlation) > 0.7).all()
    brain = (training.heads > TISSUES.index("fluid")) & (training.heads < TISSUES.index("surroundings"))
    assert (np.abs([np.argwhere(b).mean(axis=0) - HALF_MM for b in brain]) < 12).all()


def test_folders_without_ingredients_are_refused(tmp_path):
    """By the name of what lacks."""
    with pytest.raises(ScanRefused, match=r"E_INPUT_MISSING.*seg.*nii"):
        gather(tmp_path, tmp_path, tmp_path)
