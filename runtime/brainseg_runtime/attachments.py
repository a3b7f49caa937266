"""What a user can ask for beside mask and JSON, and how it comes about."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from brainseg_runtime import extras
from brainseg_runtime.animation import draw_animation
from brainseg_runtime.files import write_atomically
from brainseg_runtime.nifti import write_labels
from brainseg_runtime.outputs import Attachment, AttachmentKind
from brainseg_runtime.preview import draw_preview, shown_modalities
from brainseg_runtime.report import draw_report
from brainseg_runtime.spec import ModelSpec
from brainseg_runtime.views import scene
from brainseg_runtime.volume import Segmentation, Volume

__all__ = ["attachments_of", "require"]

PICTURES: tuple[AttachmentKind, ...] = ("preview", "gif", "report")

Contents = Mapping[str, Any]


def require(kinds: Collection[AttachmentKind]) -> None:
    """Refuse early where what was asked for cannot be drawn.

    Raises:
        EngineUnavailable: ``E_EXTRA_MISSING`` with the line that installs what is missing.
    """
    if set(kinds) & set(PICTURES):
        extras.require("a picture", ("PIL",), "brainseg-runtime[report]")


def attachments_of(
    kinds: Collection[AttachmentKind], volume: Volume, segmentation: Segmentation, spec: ModelSpec
) -> list[Attachment]:
    """Region maps and pictures of one result."""
    attachments = [_maps(segmentation)] if "probabilities" in kinds else []
    drawn = [kind for kind in PICTURES if kind in kinds]
    if drawn:
        head = scene(volume, segmentation, spec)
        makers: dict[AttachmentKind, Callable[[Contents], bytes]] = {
            "preview": lambda _: draw_preview(head, segmentation, shown_modalities(spec)),
            "gif": lambda _: draw_animation(head, segmentation),
            "report": lambda contents: draw_report(head, segmentation, spec, contents),
        }
        attachments += [Attachment(kind, _saver(makers[kind])) for kind in drawn]
    return attachments


def _maps(segmentation: Segmentation) -> Attachment:
    """The region maps as a NIfTI of four dimensions."""
    maps = segmentation.probabilities
    if maps is None:
        raise ValueError("the segmentation was made without probabilities")
    return Attachment(
        "probabilities",
        lambda path, _: write_labels(path, maps, segmentation.geometry),
        {"maps": list(segmentation.regions), "scale": "0..255 is probability 0..1"},
    )


def _saver(make: Callable[[Contents], bytes]) -> Callable[[Path, Contents], str]:
    return lambda path, contents: write_atomically(path, make(contents))
