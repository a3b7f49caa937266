"""The kernels compute what numpy computes, to the last bit: here their very source, compiled for a CPU."""

import ctypes
import re

import numpy as np
import pytest
from brainseg_runtime.certainty import Survey
from brainseg_runtime.geometry import Geometry
from brainseg_runtime.kernels.proof import Summing
from brainseg_runtime.kernels.steps import Steps, Uploaded
from brainseg_runtime.preprocess import examine, prepare, restore
from brainseg_runtime.tiles import Tiling, predict
from brainseg_runtime.volume import Volume
from toys import ORIENTATIONS, oblique_affine, toy_spec, toy_volume

from .machines import FOLDER, SPECS, STRUCTURES
from .nvrtc import compiled


def through_kernels(volume, spec, engine, card, batch):
    """A scan's logits, labels, counts and alarm, by the kernels alone but for the network.

    What they write to is poisoned before.
    """
    examined = examine(volume, spec)
    placement = examined.placement
    tiling = Tiling.of(placement.grid, spec)
    steps = Steps(spec, placement, examined.statistics, tiling, card.put)
    shapes = {
        "tiles": (batch, len(spec.modalities), *tiling.tile),
        "answers": (batch, spec.output_channels, *tiling.tile),
        "logits": (spec.output_channels, *placement.grid),
    }
    at = {name: card.put(np.full(shape, np.nan, np.float32)) for name, shape in shapes.items()}
    brain = card.put(np.full(placement.box_shape, 251, np.uint8))
    labels, bad = card.zeros(volume.data[..., 0].size), card.zeros(4)
    lines = card.put(np.full(steps.lines, -7, np.int32))
    scan = Uploaded.of(volume.data, card.put)
    card.run("foreground", *steps.foreground(scan, brain))
    for first in range(0, len(tiling), batch):
        count = min(batch, len(tiling) - first)
        card.run("gather", *steps.gather(scan, brain, first, count, at["tiles"]))
        engine.infer_at(at["tiles"], at["answers"], (count, *shapes["tiles"][1:]))
        card.run("check", *steps.check(at["answers"], count, bad))
        card.run("blend", *steps.blend(at["answers"], first, count, at["logits"]))
    if spec.activation == "sigmoid":
        card.run("decide", *steps.decide(at["logits"], labels))
        card.run("count", *steps.count(at["logits"], lines))
    return (
        np.moveaxis(card.get(at["logits"], shapes["logits"], np.float32), 0, -1),
        card.get(labels, volume.geometry.shape, np.uint8),
        card.get(lines, steps.lines, np.int32).sum(axis=(2, 3)),
        int(card.get(bad, (1,), np.int32)[0]),
    )


def assert_numpys(volume, spec, card, batch=3):
    """Logits, labels and counts are numpy's, every one."""
    engine, prepared = Summing(spec, card), prepare(volume, spec)
    expected = predict(prepared.data, engine, spec)
    survey = Survey(spec)
    mask = restore(expected[..., : spec.label_channels], prepared.placement, survey)
    logits, labels, counts, bad = through_kernels(volume, spec, engine, card, batch)
    np.testing.assert_array_equal(logits, expected)
    assert bad == 0
    if spec.activation == "sigmoid":
        np.testing.assert_array_equal(labels, mask)
        np.testing.assert_array_equal(counts, survey._counts)
    return mask


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("background", [0.0, -3.5])
def test_kernels_give_numpys_masks(card, name, background):
    """Whatever the scheme, the spacing, the normalisation and the activation."""
    mask = assert_numpys(toy_volume(seed=2, background=background), toy_spec(**SPECS[name]), card)
    assert len(np.unique(mask)) > 1


@pytest.mark.parametrize("orientation", ORIENTATIONS[::5], ids=lambda o: f"{o.axes}{o.flips}")
def test_kernels_find_the_voxels_of_any_orientation(card, orientation):
    """Axes in any order and direction, oblique and of unequal spacing."""
    volume = toy_volume(Geometry((20, 24, 18), oblique_affine((1.0, 1.25, 1.5))))
    turned = Volume(
        np.ascontiguousarray(orientation.apply(volume.data)),
        orientation.geometry(volume.geometry),
        scan="turned",
    )
    assert_numpys(turned, toy_spec(), card)


def test_a_channel_without_a_background_makes_everything_brain(card):
    """As in numpy: where no value repeats, nothing is background."""
    volume = toy_volume()
    data = volume.data.copy()
    data[..., 1] = np.random.default_rng(0).normal(100, 10, data.shape[:3])
    assert_numpys(Volume(data, volume.geometry, scan="noise"), toy_spec(), card)


@pytest.mark.parametrize("order", ["C", "F", "gaps", "backwards"])
def test_a_scan_is_read_as_it_lies_in_memory(card, order):
    """Channels first or last, the file's order of axes or its reverse; no array has to be turned for it."""
    volume = toy_volume()
    data = {
        "C": np.ascontiguousarray(volume.data),
        "F": np.asfortranarray(volume.data),
        "gaps": np.repeat(volume.data, 2, axis=1)[:, ::2],
        "backwards": np.ascontiguousarray(volume.data[::-1])[::-1],
    }[order]
    assert_numpys(Volume(data, volume.geometry, scan=order), toy_spec(), card)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("at", [0, -1], ids=["first", "last"])
def test_a_logit_that_is_not_finite_is_reported(card, value, at):
    """Wherever it stands, also beyond the grid: the labels are then nobody's, and must not be used."""
    volume, spec = toy_volume(), toy_spec()
    examined = examine(volume, spec)
    tiling = Tiling.of(examined.placement.grid, spec)
    steps = Steps(spec, examined.placement, examined.statistics, tiling, card.put)
    logits = np.zeros((2, spec.output_channels, *tiling.tile), np.float32)
    logits.flat[at] = value
    bad = card.zeros(4)
    card.run("check", *steps.check(card.put(logits), 2, bad))
    assert card.get(bad, (1,), np.int32)[0] == 1


def test_the_ptx_that_ships_is_that_of_the_source():
    """Compiled anew it is the same text, for Turing and later, without a fused multiply-add."""
    shipped = (FOLDER / "scan.ptx").read_text()
    assert ".target sm_75" in shipped
    assert "fma" not in shipped
    try:
        fresh = compiled((FOLDER / "scan.cu").read_text())
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert shipped == fresh, "make ptx"


def test_the_kernels_are_told_what_they_expect():
    """Every structure has the size that the compiler gave it; the order of fields shows in the results."""
    shipped = (FOLDER / "scan.ptx").read_text()
    sizes = re.findall(r"(\w+)_param_0\[(\d+)\]", shipped)
    assert {name: int(size) for name, size in sizes} == {
        name: ctypes.sizeof(structure) for name, structure in STRUCTURES.items()
    }


@pytest.mark.data
def test_kernels_give_numpys_masks_on_real_scans(card, real_scans):
    """Voxel for voxel, at the scans' own spacing and at another."""
    for volume in real_scans:
        for spacing in ((1.0, 1.0, 1.0), (1.4, 1.1, 1.7)):
            assert_numpys(volume, toy_spec(tile=(96, 96, 96), spacing=spacing), card)
