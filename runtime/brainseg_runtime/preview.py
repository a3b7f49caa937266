"""A picture of a result: three planes through the lesion, labels over the reference modality."""

import io
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from brainseg_runtime.errors import EngineUnavailable
from brainseg_runtime.files import write_atomically
from brainseg_runtime.geometry import to_canonical
from brainseg_runtime.spec import ModelSpec
from brainseg_runtime.volume import Segmentation, Volume

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

__all__ = ["COLOURS", "draw_preview", "require_pillow"]

COLOURS = ((230, 75, 53), (77, 187, 213), (255, 214, 10), (0, 160, 135), (145, 97, 242), (243, 155, 127))
"""One a label, in the order of their values."""

OPACITY = 0.45
HEIGHT = 360
"""Pixels of every plane's height."""


def require_pillow() -> None:
    """Refuse early where pictures cannot be drawn.

    Raises:
        EngineUnavailable: ``E_ENGINE_MISSING`` with the line that installs what is missing.
    """
    if find_spec("PIL") is None:
        raise EngineUnavailable(
            "E_ENGINE_MISSING",
            "pictures need pillow, which is not installed.",
            'Install it: pip install "brainseg-runtime[report]"',
        )


def draw_preview(volume: Volume, segmentation: Segmentation, spec: ModelSpec, path: Path) -> None:
    """Write a PNG: axial, coronal and sagittal planes through the lesion's largest cuts.

    The patient's left is on the right, as radiologists look at it; without a lesion the planes go
    through the middle.

    Raises:
        OutputUnwritable: ``E_OUTPUT``.
    """
    from PIL import Image, ImageDraw

    reorientation = to_canonical(segmentation.geometry)
    names = [modality.name for modality in spec.modalities]
    image = reorientation.apply(volume.data[..., names.index(spec.reference)])
    labels = reorientation.apply(segmentation.labels)
    spacing = reorientation.geometry(segmentation.geometry).spacing
    grey = _windowed(image)
    panels = [
        Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)
        for pixels, size in (_plane(grey, labels, spacing, axis, segmentation) for axis in (2, 1, 0))
    ]
    width = sum(panel.width for panel in panels)
    sheet = Image.new("RGB", (width, HEIGHT + 64), "black")
    left = 0
    draw = ImageDraw.Draw(sheet)
    for panel, (title, sides) in zip(panels, PLANES, strict=True):
        sheet.paste(panel, (left, 0))
        _caption(draw, left, panel.width, title, sides)
        left += panel.width
    _legend(draw, segmentation)
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    write_atomically(path, stream.getvalue())


PLANES = (("axial", "RL"), ("coronal", "RL"), ("sagittal", "PA"))
"""Title and what lies left and right of each plane."""


def _windowed(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Grey values between the 1st and the 99.5th percentile of what is not the darkest value."""
    inside = image[image > image.min()][::7]
    low, high = np.percentile(inside, (1, 99.5)) if inside.size else (0.0, 1.0)
    scaled = np.clip((image - low) / max(high - low, 1e-6), 0, 1)
    return (scaled * 255).astype(np.uint8)


def _plane(
    grey: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    spacing: tuple[float, float, float],
    axis: int,
    segmentation: Segmentation,
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Coloured pixels (height, width, 3) of the plane with most lesion, and their size on the sheet."""
    others = tuple(a for a in range(3) if a != axis)
    lesion = np.count_nonzero(labels, axis=others)
    at = int(lesion.argmax()) if lesion.any() else labels.shape[axis] // 2
    pixels = np.repeat(np.take(grey, at, axis)[..., None], 3, axis=-1).astype(np.float32)
    cut = np.take(labels, at, axis)
    for value, colour in _colours(segmentation):
        inside = cut == value
        pixels[inside] = (1 - OPACITY) * pixels[inside] + OPACITY * np.array(colour)
    # (a, b) with b upwards becomes (rows from the top, columns); R to L runs left to right.
    drawn = pixels.transpose(1, 0, 2)[::-1]
    if axis != 0:
        drawn = drawn[:, ::-1]
    mm = [cut.shape[n] * spacing[others[n]] for n in (0, 1)]
    return drawn.astype(np.uint8), (max(1, round(HEIGHT * mm[0] / mm[1])), HEIGHT)


def _colours(segmentation: Segmentation) -> list[tuple[int, tuple[int, int, int]]]:
    return [(value, COLOURS[n % len(COLOURS)]) for n, value in enumerate(sorted(segmentation.names))]


def _caption(draw: "ImageDraw", left: int, width: int, title: str, sides: str) -> None:
    draw.text((left + 6, 4), title, fill="white")
    draw.text((left + 6, HEIGHT // 2), sides[0], fill="white")
    draw.text((left + width - 14, HEIGHT // 2), sides[1], fill="white")


def _legend(draw: "ImageDraw", segmentation: Segmentation) -> None:
    left: Any = 8
    for value, colour in _colours(segmentation):
        name = segmentation.names[value]
        draw.rectangle((left, HEIGHT + 10, left + 12, HEIGHT + 22), fill=colour)
        draw.text((left + 18, HEIGHT + 10), name, fill="white")
        left += 30 + draw.textlength(name)
    volumes = ", ".join(f"{name} {ml:.1f} ml" for name, ml in segmentation.volumes_ml().items())
    draw.text((left + 10, HEIGHT + 10), f"{segmentation.scan}   {volumes}", fill="white")
    draw.text((8, HEIGHT + 36), "Research use only. Not a medical device.", fill=(170, 170, 170))
