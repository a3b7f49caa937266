"""Files that do not show what they are taken for are flagged, and right ones are not."""

from dataclasses import replace

import numpy as np
import pytest
from brainseg_runtime.fingerprint import MIXED_UP, fingerprint
from brainseg_runtime.geometry import Geometry
from brainseg_runtime.quality import FLAGS
from brainseg_runtime.volume import Volume
from toys import MODALITIES, ORIENTATIONS, toy_volume

SIZE = (72, 88, 64)
GREY = {"t1": 90, "t1c": 90, "t2": 110, "flair": 100}
FLUID = {"t1": 30, "t1c": 30, "t2": 240, "flair": 20}
TUMOUR = {"t1": 85, "t1c": 220, "t2": 150, "flair": 170}


def head(seed: int = 0, **shape: float) -> Volume:
    """A brain of 2 mm voxels: grey, ventricles of fluid off the middle, an enhancing lump on one side."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in SIZE], indexing="ij")
    brain = (x / shape.get("wide", 0.9)) ** 2 + (y / shape.get("long", 0.9)) ** 2 + (z / 0.9) ** 2 < 1
    fluid = ((x - 0.2) / 0.2) ** 2 + (y / 0.4) ** 2 + (z / 0.3) ** 2 < 1
    lump = ((x + 0.4) / 0.25) ** 2 + ((y - 0.3) / 0.25) ** 2 + (z / 0.25) ** 2 < 1
    texture = np.cumsum(np.cumsum(rng.normal(0, 0.5, SIZE), 0), 1)
    data = np.zeros((*SIZE, 4), np.float32, order="F")
    for c, name in enumerate(MODALITIES):
        image = np.select([lump, fluid], [TUMOUR[name], FLUID[name]], GREY[name]) + texture
        data[..., c] = np.where(brain, image + rng.normal(0, 3, SIZE), 0)
    return Volume(data, Geometry(SIZE, np.diag([-2.0, -2, 2, 1])), scan="head")


def exchanged(volume: Volume, one: str, other: str) -> Volume:
    order = [MODALITIES.index({one: other, other: one}.get(name, name)) for name in MODALITIES]
    return replace(volume, data=np.asfortranarray(volume.data[..., order]))


def with_channel(volume: Volume, name: str, image: np.ndarray) -> Volume:
    data = volume.data.copy(order="F")
    data[..., MODALITIES.index(name)] = image
    return replace(volume, data=data)


def codes(volume: Volume) -> set[str]:
    return {flag.code for flag in fingerprint(volume, MODALITIES)}


@pytest.mark.parametrize("seed", range(3))
def test_a_right_scan_is_not_flagged(seed):
    """However it is stored."""
    volume = head(seed)
    assert codes(volume) == set()
    for way in ORIENTATIONS[::11]:
        data = np.stack([way.apply(volume.data[..., c]) for c in range(4)], axis=-1)
        assert codes(replace(volume, data=data, geometry=way.geometry(volume.geometry))) == set()


@pytest.mark.parametrize(("one", "other"), [("t1", "t1c"), ("t2", "flair")])
def test_exchanged_names_are_flagged_by_both(one, other):
    """And the words name them, with the shares that say so."""
    (flag,) = fingerprint(exchanged(head(), one, other), MODALITIES)
    assert flag.code == "Q_EXCHANGED"
    assert f"{one} and {other}" in flag.words
    assert set(MIXED_UP) <= set(FLAGS)


@pytest.mark.parametrize("name", MODALITIES)
def test_a_file_of_another_patient_is_flagged(name):
    """Its brain has another outline; each pair that it is in is named."""
    other = head(1, wide=0.75, long=0.8).data[..., MODALITIES.index(name)]
    flags = [
        f for f in fingerprint(with_channel(head(), name, other), MODALITIES) if f.code == "Q_OTHER_HEAD"
    ]
    assert len(flags) == 3
    assert all(name in flag.words for flag in flags)


def test_a_mirrored_file_is_flagged_and_a_mirrored_scan_cannot_be():
    """One image against the others; all of them together look like another patient, who may exist."""
    volume = head()
    flair = volume.data[::-1, :, :, MODALITIES.index("flair")]
    (flag,) = fingerprint(with_channel(volume, "flair", flair), MODALITIES)
    assert flag.code == "Q_MIRRORED"
    assert "flair" in flag.words
    assert codes(replace(volume, data=np.asfortranarray(volume.data[::-1]))) == set()


@pytest.mark.parametrize(("slices", "mm"), [(1, 1.0), (2, 1.0), (3, 1.0), (1, 6.0), (2, 3.0)], ids=str)
def test_slices_too_few_to_compare_are_not_flagged(slices, mm):
    """One head's, in full size: where no block fills there is nothing to tell heads apart by."""
    geometry = Geometry((240, 240, slices), np.diag([-1.0, -1, mm, 1]))
    x, y = np.meshgrid(*[np.linspace(-1, 1, 240)] * 2, indexing="ij")
    noise = np.random.default_rng(0).normal(100, 5, (*geometry.shape, 4)).astype(np.float32)
    brain = (x**2 + y**2 < 0.5)[:, :, None, None]
    assert codes(Volume(np.where(brain, noise, np.float32(0)), geometry, scan="thin")) == set()


def test_nothing_is_said_of_what_is_not_there():
    """Neither of a modality that was not given, nor of other modalities, nor of a sliver of brain."""
    swapped = exchanged(head(), "t2", "flair")
    without = with_channel(swapped, "flair", np.zeros(SIZE, np.float32))
    assert codes(replace(without, absent=("flair",))) == set()
    assert fingerprint(swapped, ["a", "b", "c", "d"]) == []
    assert codes(toy_volume()) == set()
