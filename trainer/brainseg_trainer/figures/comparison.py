"""Truth beside prediction: in three planes, and turning."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from brainseg_runtime.animation import draw_animation
from brainseg_runtime.files import write_atomically
from brainseg_runtime.overlap import dice
from brainseg_runtime.views import PLANES
from matplotlib.figure import Figure

from brainseg_trainer.figures.canvas import CONVENTION, new_figure, save
from brainseg_trainer.figures.cases import Case, largest_cut
from brainseg_trainer.figures.gallery import legend_of, overlay

__all__ = ["draw_comparison", "draw_turning"]


def draw_comparison(found: Sequence[Case], path: Path) -> None:
    """Per scan a row of image, truth and prediction in each plane, where the truth is largest."""
    figure = new_figure(15, 2.5 * len(found) + 0.9, f"Truth beside prediction ({CONVENTION})")
    rows = figure.subfigures(len(found), 1, squeeze=False)[:, 0]
    for row, case in zip(rows, found, strict=True):
        _row(row, case)
    figure.legend(handles=legend_of(found[0]), loc="outside lower center", ncols=6)
    save(figure, path)


def _row(row: Figure, case: Case) -> None:
    assert case.answer is not None
    assert case.answered is not None
    overlaps = {r: dice(case.labels.mask(r), case.answered.mask(r)) for r in case.labels.regions}
    row.suptitle(f"{case.title}: Dice " + ", ".join(f"{r} {d:.3f}" for r, d in overlaps.items()), fontsize=10)
    panels = row.subplots(1, 9)
    for n, plane in enumerate(PLANES):
        at = largest_cut(case.truth.labels, plane.axis)
        grey = plane.cut(case.truth.images[case.modality], at)
        width, height = plane.size(case.truth.extent)
        shown = (("image", None), ("truth", case.truth.labels), ("prediction", case.answer.labels))
        for panel, (name, labels) in zip(panels[3 * n : 3 * n + 3], shown, strict=True):
            panel.imshow(grey, cmap="gray", extent=(0, width, height, 0))
            if labels is not None:
                painted = overlay(plane.cut(labels, at), case, alpha=0.55)
                panel.imshow(painted, extent=(0, width, height, 0), interpolation="nearest")
            panel.set_title(f"{plane.name}, {name}", fontsize=7)
            panel.set_axis_off()


def draw_turning(case: Case, path: Path) -> None:
    """A GIF of one turn: the truth on the left, the prediction on the right."""
    from PIL import Image, ImageDraw, ImageSequence

    assert case.answer is not None
    assert case.answered is not None
    halves = [
        Image.open(io.BytesIO(draw_animation(scene, labels)))
        for scene, labels in ((case.truth, case.labels), (case.answer, case.answered))
    ]
    frames = []
    for left, right in zip(*(ImageSequence.Iterator(half) for half in halves), strict=True):
        sheet = Image.new("RGB", (left.width + right.width, left.height), "black")
        for picture, at, name in ((left, 0, "truth"), (right, left.width, "prediction")):
            sheet.paste(picture.convert("RGB"), (at, 0))
            ImageDraw.Draw(sheet).text(
                (at + left.width // 2 - 20, left.height - 14), name, fill=(220, 220, 220)
            )
        frames.append(sheet)
    # One palette for all frames, so that colours do not flicker.
    palette = frames[0].quantize(128)
    packed = [np.asarray(frame.quantize(palette=palette)) for frame in frames]
    pictures = [Image.fromarray(frame, mode="P") for frame in packed]
    for picture in pictures:
        picture.putpalette(palette.getpalette() or [])
    content = io.BytesIO()
    duration = halves[0].info.get("duration", 90)
    pictures[0].save(content, "GIF", save_all=True, append_images=pictures[1:], duration=duration, loop=0)
    write_atomically(path, content.getvalue())
