"""A picture of a result: three planes through the largest lesion, an outline around every region."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from brainseg_runtime.outputs import DISCLAIMER
from brainseg_runtime.spec import ModelSpec
from brainseg_runtime.views import PLANES, Plane, Scene, nearest, outline, region_colours
from brainseg_runtime.volume import Segmentation

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

__all__ = ["draw_preview", "panel", "shown_modalities"]

SCALE = 2.0
"""Pixels a mm, the same in every panel, so that one scale bar serves all."""
GAP = 16
SCALE_BAR_MM = 50
INK = (225, 225, 225)
FAINT = (150, 150, 150)


def draw_preview(head: Scene, segmentation: Segmentation, rows: Sequence[str]) -> bytes:
    """A PNG of axial, coronal and sagittal planes, a row for each of some modalities.

    The patient's left is on the right, as radiologists look at it; without a lesion the planes go
    through the middle.
    """
    from PIL import Image, ImageDraw

    layout = _Layout.of(head, len(rows))
    sheet = Image.new("RGB", (layout.width, layout.height), "black")
    draw = ImageDraw.Draw(sheet)
    for row, modality in enumerate(rows):
        for column, plane in enumerate(PLANES):
            corner = layout.corner(row, column)
            sheet.paste(Image.fromarray(panel(head, plane, modality, segmentation, SCALE)), corner)
            _letters(draw, plane, corner, layout.sizes[column])
        _text(draw, (GAP, layout.tops[row] + 4), modality.upper(), INK, 18)
    _footer(draw, segmentation, layout)
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    return stream.getvalue()


def shown_modalities(spec: ModelSpec) -> tuple[str, ...]:
    """The modalities that a tumour is looked for on: T1c and FLAIR if required, else the reference."""
    names = {modality.name for modality in spec.modalities if not modality.optional}
    return tuple(name for name in ("t1c", "flair") if name in names) or (spec.reference,)


def panel(
    head: Scene, plane: Plane, modality: str, segmentation: Segmentation, scale: float
) -> NDArray[np.uint8]:
    """One plane through the lesion as pixels (rows, columns, 3), ``scale`` pixels a mm."""
    from PIL import Image

    at = head.focus[plane.axis]
    width, height = _pixels(plane, head, scale)
    grey = Image.fromarray(plane.cut(head.images[modality], at))
    pixels = np.array(grey.resize((width, height), Image.Resampling.BICUBIC).convert("RGB"))
    labels = nearest(plane.cut(head.labels, at)[..., None], (height, width, 1))[..., 0]
    for region, colour in region_colours(segmentation).items():
        mask = np.isin(labels, segmentation.regions[region])
        pixels[outline(mask, thickness=2 if scale >= 1.5 else 1)] = colour
    return pixels


@dataclass(frozen=True)
class _Layout:
    """Where the panels of a sheet lie, in pixels."""

    sizes: tuple[tuple[int, int], ...]
    """(width, height) of each plane's panel."""
    lefts: tuple[int, ...]
    tops: tuple[int, ...]
    row_height: int
    width: int
    height: int

    @classmethod
    def of(cls, head: Scene, rows: int) -> "_Layout":
        sizes = tuple(_pixels(plane, head, SCALE) for plane in PLANES)
        row_height = max(height for _, height in sizes) + 2 * LETTER + GAP
        lefts = [GAP + LETTER]
        for width, _ in sizes[:-1]:
            lefts.append(lefts[-1] + width + GAP + 2 * LETTER)
        tops = tuple(GAP + row * row_height for row in range(rows))
        width = max(lefts[-1] + sizes[-1][0] + LETTER + GAP, 720)
        return cls(sizes, tuple(lefts), tops, row_height, width, GAP + rows * row_height + FOOTER)

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """Top left of a panel, which stands in the middle of its row."""
        return self.lefts[column], self.tops[row] + (self.row_height - self.sizes[column][1]) // 2


LETTER = 22
"""Pixels around a panel for the letters of its sides."""
FOOTER = 108


def _pixels(plane: Plane, head: Scene, scale: float) -> tuple[int, int]:
    width, height = plane.size(head.extent)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _letters(draw: "ImageDraw", plane: Plane, corner: tuple[int, int], size: tuple[int, int]) -> None:
    """The patient's directions around a panel."""
    (x, y), (width, height) = corner, size
    half = LETTER // 2
    places = (
        (x - half, y + height // 2),
        (x + width + half, y + height // 2),
        (x + width // 2, y - half),
        (x + width // 2, y + height + half),
    )
    for letter, place in zip(plane.sides, places, strict=True):
        _text(draw, place, letter, FAINT, 16, anchor="mm")


def _footer(draw: "ImageDraw", segmentation: Segmentation, layout: _Layout) -> None:
    """Legend with volumes, scale bar, the scan's name and the word on medical use."""
    top = layout.height - FOOTER + 12
    left = GAP
    volumes = segmentation.volumes_ml()
    for region, colour in region_colours(segmentation).items():
        draw.rectangle((left, top + 3, left + 16, top + 19), outline=colour, width=3)
        words = f"{region} {volumes[region]:.1f} ml"
        _text(draw, (left + 24, top), words, INK, 18)
        left += 24 + round(_length(draw, words, 18)) + 28
    bar = round(SCALE_BAR_MM * SCALE)
    right = layout.width - GAP
    draw.line((right - bar, top + 12, right, top + 12), fill=INK, width=2)
    for end in (right - bar, right):
        draw.line((end, top + 7, end, top + 17), fill=INK, width=2)
    _text(draw, (right - bar // 2, top + 30), f"{SCALE_BAR_MM} mm", INK, 15, anchor="mm")
    name = "".join(letter if letter.isprintable() else "?" for letter in segmentation.scan)
    name = name if len(name) <= 60 else name[:57] + "..."
    found = "" if segmentation.labels.any() else "   no tumour found"
    _text(draw, (GAP, top + 34), name + found, INK, 16)
    _text(draw, (GAP, top + 62), DISCLAIMER, FAINT, 15)


def _text(
    draw: "ImageDraw",
    at: tuple[float, float],
    words: str,
    colour: tuple[int, int, int],
    size: int,
    anchor: str = "la",
) -> None:
    from PIL import ImageFont

    draw.text(at, words, fill=colour, font=ImageFont.load_default(size), anchor=anchor)


def _length(draw: "ImageDraw", words: str, size: int) -> float:
    from PIL import ImageFont

    return float(draw.textlength(words, font=ImageFont.load_default(size)))
