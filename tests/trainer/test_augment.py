"""Augmentation: drawn from a seed, applied without a trace."""

from dataclasses import replace

import numpy as np
from brainseg_trainer.augment.light import Augmentation, apply, draw

NOTHING = Augmentation((False,) * 3, (1.0,) * 4, (0.0,) * 4, (0.0,) * 4, 0.0, 0)


def tile():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(6, 5, 4, 4)).astype(np.float32)
    image[:2] = 0
    return image, rng.integers(0, 4, (6, 5, 4)).astype(np.uint8)


def test_a_seed_names_one_augmentation():
    """Equal generators draw equal augmentations, and an augmentation gives equal tiles each time."""
    one, two = draw(np.random.default_rng(3), 4), draw(np.random.default_rng(3), 4)
    assert one == two
    assert one != draw(np.random.default_rng(4), 4)
    np.testing.assert_array_equal(apply(one, *tile())[0], apply(two, *tile())[0])


def test_applying_changes_no_input():
    """The tile that goes in is the same afterwards."""
    image, labels = tile()
    apply(draw(np.random.default_rng(3), 4), image, labels)
    np.testing.assert_array_equal(image, tile()[0])
    np.testing.assert_array_equal(labels, tile()[1])


def test_doing_nothing_changes_nothing():
    """The neutral augmentation gives the tile back."""
    image, labels = apply(NOTHING, *tile())
    np.testing.assert_array_equal(image, tile()[0])
    np.testing.assert_array_equal(labels, tile()[1])


def test_background_stays_background():
    """Whatever is drawn, voxels that are 0 in every modality stay 0, as when the model is used."""
    for seed in range(5):
        drawn = draw(np.random.default_rng(seed), 4)
        image, _ = apply(drawn, *tile())
        background = (tile()[0] == 0).all(-1)
        for axis, flip in enumerate(drawn.flips):
            background = np.flip(background, axis) if flip else background
        np.testing.assert_array_equal((image == 0).all(-1), background)


def test_labels_move_with_the_image():
    """A mirrored tile's voxels keep their labels."""
    image, labels = tile()
    mirrored = replace(NOTHING, flips=(True, False, True))
    image2, labels2 = apply(mirrored, image, labels)
    np.testing.assert_array_equal(image2[::-1, :, ::-1], image)
    np.testing.assert_array_equal(labels2[::-1, :, ::-1], labels)
