"""A tumour that does not enhance, made of one that does: what changes, and that nothing else does."""

from dataclasses import replace

import numpy as np
import pytest
from brainseg_runtime.errors import UsageRefused
from brainseg_trainer.augment.enhancement import unenhanced
from brainseg_trainer.config import load
from brainseg_trainer.dataset import draw_batch
from brainseg_trainer.example import Example
from brainseg_trainer.task import glioma_spec

SPEC = glioma_spec(load("glioma"), (1, 1, 1))
T1, T1C = 0, 1


def tile():
    """A tumour in a brain: NCR in ET in ED, its rim bright on T1c alone."""
    places = np.stack(np.meshgrid(*[np.arange(24) - 12] * 3, indexing="ij"), axis=-1)
    distance = np.linalg.norm(places, axis=-1)
    labels = np.select([distance < 3, distance < 6, distance < 9], [1, 3, 2], 0).astype(np.uint8)
    image = np.random.default_rng(0).normal(0, 0.1, (24, 24, 24, 4)).astype(np.float32)
    image[..., T1] -= 0.5 * (labels == 1)
    image[..., T1C] = image[..., T1] + 0.4 + 3.0 * (labels == 3)
    return image, labels


def test_the_rim_is_gone_and_the_core_stays():
    """In the core T1c is T1 and what lies between the two elsewhere; ET is NCR; all else is as it was."""
    image, labels = tile()
    plain, after = unenhanced(image, labels, SPEC)
    assert not (after == 3).any()
    np.testing.assert_array_equal(np.isin(after, (1, 3)), np.isin(labels, (1, 3)))
    np.testing.assert_array_equal(after == 2, labels == 2)
    np.testing.assert_array_equal(np.delete(plain, T1C, axis=-1), np.delete(image, T1C, axis=-1))
    core = np.isin(labels, (1, 3))
    raised = (plain[..., T1C] - plain[..., T1])[core]
    assert raised.mean() == pytest.approx(0.4, abs=0.4)
    assert (image[..., T1C] - image[..., T1])[core].mean() > 2
    far = np.zeros_like(core)
    far[0] = True
    np.testing.assert_allclose(plain[far], image[far], atol=1e-6)


def test_what_does_not_enhance_stays_as_it_is():
    """Without ET there is nothing to take away."""
    image, labels = tile()
    dull = np.where(labels == 3, 1, labels).astype(np.uint8)
    same, kept = unenhanced(image, dull, SPEC)
    assert same is image
    assert kept is dull


@pytest.mark.parametrize("augmentation", ["none", "light", "full"])
def test_as_many_tiles_lose_their_rim_as_are_asked_for(augmentation):
    """All of them for a share of 1, none for 0; scores are taken on tiles as they are."""
    image, labels = tile()
    voxels = np.argwhere(labels > 0)
    example = Example("P1", image, labels, voxels)
    config = load("glioma")
    data = replace(config.data, tile=(16, 16, 16), spacing=(1.0, 1.0, 1.0), augmentation=augmentation)

    def enhances(share, **options):
        settings = replace(config, data=replace(data, unenhanced=share, tumour=1.0))
        return draw_batch([example], SPEC, settings, 0, **options)[1][..., 2].any()

    assert enhances(0.0)
    assert not enhances(1.0)
    assert enhances(1.0, altered=False)


def test_it_takes_both_t1():
    """A task without one of them cannot have it."""
    config = load("glioma")
    with pytest.raises(UsageRefused, match=r"data\.unenhanced"):
        replace(
            config,
            task=replace(config.task, modalities=("t1c", "flair")),
            data=replace(config.data, unenhanced=0.5),
        )
