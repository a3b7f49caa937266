"""A result in the round: the head as a faint shell, the regions inside it, turning about the body's axis."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from brainseg_runtime.outputs import DISCLAIMER
from brainseg_runtime.views import BRIGHT, Colour, Scene, region_colours, shrink
from brainseg_runtime.volume import Segmentation

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

__all__ = ["draw_animation"]

Field = NDArray[np.float32]
Place = tuple[float, float, float]

FRAMES = 30
MILLISECONDS = 90
WIDTH, HEIGHT = 380, 340
"""Pixels of a frame."""
HEAD_CELLS = 72
REGION_CELLS = 64
"""Cells along the longest side of the head's and of the lesion's grid."""
SURFACE = 0.3
"""Occupancy at which a surface lies; below one half, so that thin rims survive the coarse grid."""
LIGHT = (-0.45, -0.55, -0.7)
"""Where the light comes from: left of, above, and in front of the picture."""
OPACITY = 0.75
SHELL: Colour = (165, 175, 185)
INK = (215, 215, 215)
FAINT = (120, 120, 120)


@dataclass(frozen=True, eq=False)
class _Body:
    """One surface and how it looks."""

    field: Field
    """(L, P, I): how much of every cell is inside, 0 around the border."""
    mm: float
    """Size of a cell."""
    centre: Place
    """Of the grid, from the head's centre, in mm along L, P, I."""
    colour: Colour
    opacity: float
    is_shell: bool = False
    """A shell shows its rim and lets one look through its middle."""


def draw_animation(head: Scene, segmentation: Segmentation) -> bytes:
    """A GIF of one turn, seen level with the head; it starts from the front."""
    bodies = _bodies(head, segmentation)
    per_mm = min(WIDTH / math.hypot(*head.extent[:2]), HEIGHT * 0.75 / head.extent[2]) * 0.96
    legend = [
        (f"{region} {ml:.1f} ml", region_colours(segmentation)[region])
        for region, ml in segmentation.volumes_ml().items()
    ]
    front, back = [], []
    for angle in (2 * math.pi * n / FRAMES for n in range(FRAMES // 2)):
        turned = [_turned(body.field, angle) for body in bodies]
        front.append(_captioned(_frame(bodies, turned, angle, per_mm), angle, legend))
        # From behind, the same rays run the other way and the sides are swapped.
        turned = [rays[::-1, ::-1] for rays in turned]
        angle += math.pi
        back.append(_captioned(_frame(bodies, turned, angle, per_mm), angle, legend))
    return _gif(front + back)


def _bodies(head: Scene, segmentation: Segmentation) -> list[_Body]:
    """In the order in which they are painted: inner regions shine through outer ones, the head is last."""
    bodies = []
    lesion = head.labels > 0
    if lesion.any():
        box = _around(lesion)
        mm = max(_longest(head, box) / REGION_CELLS, min(head.spacing))
        colours = region_colours(segmentation)
        for region, values in segmentation.regions.items():
            mask = np.isin(head.labels[box], values)
            bodies.append(_Body(*_cells(head, mask, box, mm, 1), colours[region], OPACITY))
    tissue = np.maximum.reduce(list(head.images.values())) > BRIGHT * 255
    whole = (slice(0, head.shape[0]), slice(0, head.shape[1]), slice(0, head.shape[2]))
    mm = max(head.extent) / HEAD_CELLS
    bodies.append(_Body(*_cells(head, tissue, whole, mm, 3), SHELL, 0.6, is_shell=True))
    return bodies


def _cells(
    head: Scene, mask: NDArray[np.bool_], box: tuple[slice, slice, slice], mm: float, smoothing: int
) -> tuple[Field, float, Place]:
    """A mask on cubes: the field, the size of a cube, and where the field's centre lies."""
    extents = [n * size for n, size in zip(mask.shape, head.spacing, strict=True)]
    x, y, z = (max(1, round(extent / mm)) for extent in extents)
    field = np.pad(shrink(mask, (x, y, z)), smoothing + 1)
    for _ in range(smoothing):
        for axis in range(3):
            field = 0.5 * field + 0.25 * (np.roll(field, 1, axis) + np.roll(field, -1, axis))
    middles = (
        ((part.start + part.stop) - n) / 2 * size
        for part, n, size in zip(box, head.shape, head.spacing, strict=True)
    )
    a, b, c = middles
    return field.astype(np.float32), mm, (a, b, c)


def _frame(bodies: Sequence[_Body], turned: Sequence[Field], angle: float, per_mm: float) -> "Picture":
    """All bodies from one side, ``per_mm`` pixels a mm."""
    from PIL import Image

    picture = Image.new("RGBA", (WIDTH, HEIGHT), (0, 0, 0, 255))
    for body, rays in zip(bodies, turned, strict=True):
        seen = Image.fromarray(_seen(body, rays))
        across = math.cos(angle) * body.centre[0] + math.sin(angle) * body.centre[1]
        # Where the picture's pixels fall among the cells: a scaling and a shift.
        step = 1 / (per_mm * body.mm)
        left = seen.width / 2 - (WIDTH / 2 + across * per_mm) * step
        top = seen.height / 2 - (HEIGHT * MIDDLE + body.centre[2] * per_mm) * step
        placed = seen.transform(
            picture.size,
            Image.Transform.AFFINE,
            (step, 0, left, 0, step, top),
            Image.Resampling.BILINEAR,
        )
        picture.alpha_composite(placed)
    return picture.convert("RGB")


MIDDLE = 0.47
"""Where the head's middle is, as a part of the frame's height."""


def _seen(body: _Body, rays: Field) -> NDArray[np.uint8]:
    """A body's first surface along rays (depth, across, down): (rows, columns, RGBA), a pixel a cell."""
    hit = rays > SURFACE
    first = hit.argmax(axis=0)
    is_hit = hit.any(axis=0)
    here = np.take_along_axis(rays, first[None], axis=0)[0]
    before = np.take_along_axis(rays, np.maximum(first - 1, 0)[None], axis=0)[0]
    depth = first - (here - SURFACE) / np.maximum(here - before, 1e-3)
    depth = np.where(is_hit, depth, rays.shape[0] * 0.75)
    across, down = (np.clip(slope, -4, 4) for slope in np.gradient(depth))
    facing = 1 / np.sqrt(across**2 + down**2 + 1)
    lit = np.clip((across * LIGHT[0] + down * LIGHT[1] - LIGHT[2]) * facing, 0, 1)
    pixels = np.empty((*depth.shape, 4), dtype=np.float32)
    pixels[..., :3] = np.array(body.colour, dtype=np.float32) * np.minimum(0.45 + 0.65 * lit[..., None], 1)
    opacity = 0.05 + (1 - facing) ** 1.5 * body.opacity if body.is_shell else np.float32(body.opacity)
    pixels[..., 3] = np.where(is_hit, 255 * opacity, 0)
    return np.ascontiguousarray(pixels.transpose(1, 0, 2)).astype(np.uint8)


def _turned(field: Field, angle: float) -> Field:
    """(L, P, I) -> (depth, across, down) for a viewer who walked around the head; linear in the plane."""
    x, y, z = field.shape
    side = math.ceil(math.hypot(x, y))
    steps = np.arange(side, dtype=np.float32) - (side - 1) / 2
    deep, across = steps[:, None], steps[None, :]
    i = np.cos(angle) * across - np.sin(angle) * deep + (x - 1) / 2
    j = np.sin(angle) * across + np.cos(angle) * deep + (y - 1) / 2
    # Beyond the grid every ray reads its empty border.
    i, j = np.clip(i, 0, x - 1.001), np.clip(j, 0, y - 1.001)
    a, b = i.astype(np.intp), j.astype(np.intp)
    u, v = (i - a)[..., None].astype(np.float32), (j - b)[..., None].astype(np.float32)
    rows = field.reshape(x * y, z)
    at = a * y + b
    turned: Field = (rows[at] * (1 - v) + rows[at + 1] * v) * (1 - u)
    turned += (rows[at + y] * (1 - v) + rows[at + y + 1] * v) * u
    return turned


def _captioned(picture: "Picture", angle: float, legend: Sequence[tuple[str, Colour]]) -> "Picture":
    """Volumes, the patient's directions as they turn, and the word on medical use."""
    from PIL import ImageDraw, ImageFont

    draw = ImageDraw.Draw(picture)
    top = 6
    for words, colour in legend:
        draw.rectangle((8, top + 3, 18, top + 13), fill=colour)
        draw.text((24, top), words, fill=INK, font=ImageFont.load_default(13))
        top += 18
    for letter, at in (("L", 0.0), ("P", 0.5), ("R", 1.0), ("A", 1.5)):
        across, deep = math.cos(at * math.pi - angle), math.sin(at * math.pi - angle)
        place = (WIDTH / 2 + across * WIDTH * 0.46, HEIGHT * 0.86 - deep * HEIGHT * 0.05)
        shade = INK if deep < 0.05 else FAINT
        draw.text(place, letter, fill=shade, font=ImageFont.load_default(15), anchor="mm")
    draw.text((8, HEIGHT - 18), DISCLAIMER, fill=FAINT, font=ImageFont.load_default(11))
    return picture


def _gif(frames: Sequence["Picture"]) -> bytes:
    """One palette for all frames: colours that flicker would look like findings."""
    from PIL import Image

    samples = frames[:: max(1, len(frames) // 4)]
    montage = Image.new("RGB", (WIDTH, HEIGHT * len(samples)))
    for n, frame in enumerate(samples):
        montage.paste(frame, (0, n * HEIGHT))
    palette = montage.quantize(224, method=Image.Quantize.MAXCOVERAGE)
    reduced = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    stream = io.BytesIO()
    reduced[0].save(
        stream, "GIF", save_all=True, append_images=reduced[1:], duration=MILLISECONDS, loop=0, disposal=1
    )
    return stream.getvalue()


def _around(mask: NDArray[np.bool_]) -> tuple[slice, slice, slice]:
    hits = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    x, y, z = (slice(int(hit[0]), int(hit[-1]) + 1) for hit in hits)
    return x, y, z


def _longest(head: Scene, box: tuple[slice, slice, slice]) -> float:
    return float(max((part.stop - part.start) * mm for part, mm in zip(box, head.spacing, strict=True)))
