"""Intensities of a tile: neutral parameters, exact background, and what each change is defined as."""

from dataclasses import replace

import numpy as np
import pytest
from brainseg_trainer.augment.intensity import SIGNAL, Looks, apply, draw

ZERO, ONE = (0.0,) * 3, (1.0,) * 3
NOTHING = Looks(0.0, 0, ZERO, ONE, ZERO, ONE, ONE, ONE, False, 0.0, 0, (False,) * 3)


def tile(shape=(12, 10, 8), seed=0):
    """A brain of smooth z-scores in three modalities, and background around it."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(*shape, 3)).astype(np.float32)
    image[:3] = 0
    return image


def test_doing_nothing_changes_nothing():
    """The neutral looks give the tile back."""
    np.testing.assert_array_equal(apply(NOTHING, tile()), tile())


@pytest.mark.parametrize("seed", range(30))
def test_any_look_is_finite_and_leaves_background(seed):
    """Whatever is drawn, background stays exactly 0, numbers stay numbers, and a draw gives one result."""
    looks = draw(np.random.default_rng(seed), 3)
    image = tile(seed=seed)
    altered = apply(looks, image)
    assert np.isfinite(altered).all()
    assert (altered[:3] == 0).all()
    np.testing.assert_array_equal(image, tile(seed=seed))
    np.testing.assert_array_equal(apply(looks, image), altered)
    assert altered.dtype == np.float32


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("value", [0.0, 2.5])
def test_flat_tiles_stay_finite(seed, value):
    """Tiles of one value, background alone included, and single slices give numbers."""
    looks = draw(np.random.default_rng(seed), 1)
    for shape in ((8, 8, 8, 1), (16, 16, 1, 1)):
        altered = apply(looks, np.full(shape, value, np.float32))
        assert np.isfinite(altered).all()
        assert value or not altered.any()


def test_gamma_keeps_mean_and_deviation_and_order():
    """A power bends the range and nothing else: moments over the brain stay, brighter stays brighter."""
    for negative in (False, True):
        altered = apply(replace(NOTHING, gamma=(0.7, 1.5, 1.0), negative=negative), tile())
        for c in range(3):
            before, after = tile()[3:, ..., c].ravel(), altered[3:, ..., c].ravel()
            assert after.mean() == pytest.approx(before.mean(), abs=1e-4)
            assert after.std() == pytest.approx(before.std(), rel=1e-4)
            assert (np.diff(after[np.argsort(before)]) >= -1e-5).all()
        np.testing.assert_allclose(altered[..., 2], tile()[..., 2])
        assert np.abs(altered - tile())[..., :2].max() > 0.1


def test_contrast_keeps_the_mean_and_the_range():
    """Differences to the brain's mean grow by the factor, no farther than what there was."""
    altered = apply(replace(NOTHING, contrast=(1.25, 0.75, 1.0)), tile())
    before = tile()[3:, ..., 1]
    np.testing.assert_allclose(
        altered[3:, ..., 1], (before - before.mean()) * 0.75 + before.mean(), atol=1e-5
    )
    assert altered[3:, ..., 0].max() == pytest.approx(tile()[3:, ..., 0].max())
    assert altered[3:, ..., 0].std() > tile()[3:, ..., 0].std()


def test_brightness_is_a_line():
    """Gain and shift are applied to the brain as they are."""
    altered = apply(replace(NOTHING, gain=(1.25, 1.0, 1.0), shift=(0.0, -0.2, 0.0)), tile())
    np.testing.assert_allclose(altered[3:, ..., 0], 1.25 * tile()[3:, ..., 0], rtol=1e-6)
    np.testing.assert_allclose(altered[3:, ..., 1], tile()[3:, ..., 1] - 0.2, rtol=1e-5, atol=1e-6)


def test_blur_and_coarse_grids_lose_detail_and_no_mean():
    """Differences between neighbours shrink; the mean hardly moves."""
    rough = tile((16, 16, 16))
    for looks in (replace(NOTHING, blur=ONE), replace(NOTHING, coarse=(0.5,) * 3)):
        altered = apply(looks, rough)
        assert np.abs(np.diff(altered[4:], axis=1)).mean() < 0.7 * np.abs(np.diff(rough[4:], axis=1)).mean()
        assert altered[4:].mean() == pytest.approx(rough[4:].mean(), abs=0.05)


def test_shading_multiplies_the_signal_smoothly():
    """The signal, a z-score and its mean, changes by no more than was drawn, the same in all modalities."""
    altered = apply(replace(NOTHING, bias=0.3), tile((24, 24, 24)))
    factor = (altered[3:] + SIGNAL) / (tile((24, 24, 24))[3:] + SIGNAL)
    np.testing.assert_allclose(factor[..., 0], factor[..., 1], rtol=1e-3)
    assert np.abs(factor - 1).max() <= 0.3 * (1 + 1e-4)
    assert np.abs(np.diff(factor[..., 0], axis=0)).max() < 0.05
    assert np.ptp(factor) > 0.1


def test_noise_has_its_deviation():
    """White noise of the drawn deviation, other in each modality."""
    looks = replace(NOTHING, noise=0.3)
    added = (apply(looks, tile((32, 32, 32))) - tile((32, 32, 32)))[3:]
    assert added.std() == pytest.approx(0.3, rel=0.02)
    assert abs(np.corrcoef(added[..., 0].ravel(), added[..., 1].ravel())[0, 1]) < 0.03


def test_absent_modalities_are_zero_and_never_all():
    """A modality is absent in about a tenth of the tiles, and one is always left."""
    altered = apply(replace(NOTHING, absent=(True, False, True)), tile())
    assert not altered[..., (0, 2)].any()
    np.testing.assert_array_equal(altered[..., 1], tile()[..., 1])
    for modalities in (1, 2, 4):
        drawn = np.array([draw(np.random.default_rng(s), modalities).absent for s in range(600)])
        assert not drawn.all(axis=1).any()
        expected = 0.1 * (1 - 1 / modalities)
        assert drawn.mean() == pytest.approx(expected, abs=0.025)


def test_draws_are_as_often_as_the_table_says():
    """Each change happens about as often as in nnU-Net's table, within its range."""
    drawn = [draw(np.random.default_rng(seed), 4) for seed in range(2000)]
    for name, neutral, chance, low, high in (
        ("blur", 0.0, 0.2 * 0.5, 0.5, 1.0),
        ("gain", 1.0, 0.15, 0.75, 1.25),
        ("shift", 0.0, 0.3, -0.2, 0.2),
        ("contrast", 1.0, 0.15, 0.75, 1.25),
        ("coarse", 1.0, 0.25 * 0.5, 0.5, 1.0),
        ("gamma", 1.0, 0.3, 0.7, 1.5),
    ):
        values = np.array([getattr(looks, name) for looks in drawn])
        happened = values != neutral
        assert happened.mean() == pytest.approx(chance, abs=0.03)
        assert low <= values[happened].min() <= values[happened].max() <= high
    assert np.mean([looks.noise > 0 for looks in drawn]) == pytest.approx(0.1, abs=0.03)
    assert np.mean([looks.bias > 0 for looks in drawn]) == pytest.approx(0.3, abs=0.04)
