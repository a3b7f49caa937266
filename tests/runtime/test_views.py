"""How a scan is looked at: left is on the right, outlines lie on the mask's border, no label is cut off."""

import io
from dataclasses import replace

import nibabel
import numpy as np
import pytest
from brainseg_runtime.animation import draw_animation
from brainseg_runtime.preview import draw_preview, panel, shown_modalities
from brainseg_runtime.spec import Modality
from brainseg_runtime.views import PLANES, label_colours, outline, region_colours, scene
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from toys import phantom, toy_spec

ORIENTATIONS = ["LPS", "RAS", "SAL", "IPR", "PIL", "ASR"]
AXIAL, CORONAL, SAGITTAL = PLANES


def coloured(pixels):
    """Where a picture is not grey, (rows, columns)."""
    pixels = pixels.astype(int)
    return pixels.max(-1) - pixels.min(-1) > 40


@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))), st.integers(1, 3))
def test_an_outline_is_what_lies_close_to_the_outside(mask, thickness):
    """A pixel of the mask is on the outline if one outside is within so many steps up, down or sideways."""
    rows, columns = np.indices(np.add(mask.shape, 2 * thickness)) - thickness
    outside = np.ones(rows.shape, dtype=bool)
    outside[thickness:-thickness, thickness:-thickness] = ~mask
    expected = np.zeros_like(mask)
    for r, c in zip(*np.nonzero(mask), strict=True):
        expected[r, c] = (abs(rows - r) + abs(columns - c))[outside].min() <= thickness
    np.testing.assert_array_equal(outline(mask, thickness), expected)


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_left_is_left_in_every_storage_orientation(codes):
    """The phantom's lesion is left, in front and high: right and up in the picture, left in the sagittal."""
    volume, segmentation = phantom(codes)
    head = scene(volume, segmentation, toy_spec())
    for plane, is_right, is_up in ((AXIAL, True, True), (CORONAL, True, True), (SAGITTAL, False, True)):
        hit = coloured(panel(head, plane, "t1c", segmentation, 1.0))
        rows, columns = (where.mean() / n for where, n in zip(np.nonzero(hit), hit.shape, strict=True))
        assert (columns > 0.55) if is_right else (columns < 0.45), plane.name
        assert (rows < 0.45) == is_up, plane.name


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_outlines_lie_where_the_masks_border_is(codes):
    """Against nibabel's own reorientation of the mask, pixel for pixel, in every plane."""
    volume, segmentation = phantom(codes)
    head = scene(volume, segmentation, toy_spec())
    image = nibabel.Nifti1Image(segmentation.labels, segmentation.geometry.affine)
    canonical = np.asarray(nibabel.as_closest_canonical(image).dataobj)[::-1, ::-1, ::-1]
    for axis, plane in ((2, AXIAL), (1, CORONAL), (0, SAGITTAL)):
        areas = (canonical > 0).sum(axis=tuple(a for a in range(3) if a != axis))
        drawn = panel(head, plane, "t1c", segmentation, 1.0)
        cut = plane.cut(head.labels, head.focus[axis])
        assert np.count_nonzero(cut) == areas.max()
        borders = np.zeros(cut.shape, dtype=bool)
        for region, values in segmentation.regions.items():
            border = outline(np.isin(cut, values))
            borders |= border
            inner = [v for name, v in segmentation.regions.items() if set(v) < set(values)]
            own = border & ~np.isin(cut, inner[0] if inner else ())
            assert (drawn[own] == region_colours(segmentation)[region]).all()
        np.testing.assert_array_equal(coloured(drawn), borders)


def test_no_label_is_cut_off_and_sizes_are_true():
    """A label far from any tissue stays in the scene; a coarser scene has the same extent and volumes."""
    volume, segmentation = phantom("LPS")
    segmentation.labels[0, 0, 0] = 2
    head = scene(volume, segmentation, toy_spec())
    assert np.count_nonzero(head.labels) == np.count_nonzero(segmentation.labels)
    coarse = head.reduced(20_000)
    assert np.prod(coarse.shape) <= 20_000
    np.testing.assert_allclose(coarse.extent, head.extent, rtol=1e-6)
    ml = [np.count_nonzero(s.labels) * np.prod(s.spacing) for s in (head, coarse)]
    assert ml[1] == pytest.approx(ml[0], rel=0.1)
    assert coarse.labels[coarse.focus] > 0
    assert head.reduced(10**9) is head


def test_every_label_has_the_colour_of_its_innermost_region():
    """NCR is what the core has and enhancing tumour has not, so it has the core's colour."""
    _, segmentation = phantom("LPS")
    regions, labels = region_colours(segmentation), label_colours(segmentation)
    assert labels == {1: regions["TC"], 2: regions["WT"], 3: regions["ET"]}


@pytest.mark.parametrize("empty", [False, True], ids=["lesion", "empty"])
def test_a_preview_has_a_row_for_t1c_and_flair(empty):
    """Two rows where the model has both, the reference where it has neither; also without a lesion."""
    volume, segmentation = phantom("RAS", empty=empty)
    spec = toy_spec()
    head = scene(volume, segmentation, spec)
    assert shown_modalities(spec) == ("t1c", "flair")
    both, one = (
        Image.open(io.BytesIO(draw_preview(head, segmentation, rows)))
        for rows in (("t1c", "flair"), ("t1c",))
    )
    assert both.height > 1.5 * one.height
    top = np.asarray(both.convert("RGB"))[: both.height - 110]
    assert coloured(top).any() == (not empty)
    strange = replace(segmentation, scan="a\nb\x00\u202e" * 40)
    assert draw_preview(head, strange, ("t1c",))
    other = toy_spec(modalities=(Modality("ct"),), reference="ct")
    assert shown_modalities(other) == ("ct",)


@pytest.mark.parametrize("empty", [False, True], ids=["lesion", "empty"])
def test_the_animation_turns_once_and_starts_from_the_front(empty):
    """Seen from the front the left lesion is on the right, from behind on the left; a small file."""
    volume, segmentation = phantom("LPS", empty=empty)
    content = draw_animation(scene(volume, segmentation, toy_spec()), segmentation)
    assert len(content) < 1_000_000
    film = Image.open(io.BytesIO(content))
    assert 24 <= film.n_frames <= 36
    middles = []
    for n in (0, film.n_frames // 2):
        film.seek(n)
        hit = coloured(np.asarray(film.convert("RGB")))
        hit[:60, :130] = False  # the legend
        assert hit.any() == (not empty)
        middles.append(np.nonzero(hit)[1].mean() / film.width if hit.any() else None)
    if not empty:
        assert middles[0] > 0.52
        assert middles[1] < 0.48
