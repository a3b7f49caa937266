"""What a user can ask for beside mask and JSON, and how it comes about."""

from collections.abc import Callable, Collection, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from brainseg_runtime.errors import EngineUnavailable
from brainseg_runtime.files import write_atomically
from brainseg_runtime.outputs import ATTACHMENTS, Attachment, AttachmentKind
from brainseg_runtime.preview import draw_preview, shown_modalities
from brainseg_runtime.spec import ModelSpec
from brainseg_runtime.views import scene
from brainseg_runtime.volume import Segmentation, Volume

__all__ = ["attachments_of", "require"]

Contents = Mapping[str, Any]


def require(kinds: Collection[AttachmentKind]) -> None:
    """Refuse early where what was asked for cannot be drawn.

    Raises:
        EngineUnavailable: ``E_ENGINE_MISSING`` with the line that installs what is missing.
    """
    if set(kinds) - {"probabilities"} and find_spec("PIL") is None:
        raise EngineUnavailable(
            "E_ENGINE_MISSING",
            "pictures need pillow, which is not installed.",
            'Install it: pip install "brainseg-runtime[report]"',
        )


def attachments_of(
    kinds: Collection[AttachmentKind], volume: Volume, segmentation: Segmentation, spec: ModelSpec
) -> list[Attachment]:
    """The attachments of one result, in the order of ``ATTACHMENTS``."""
    if not kinds:
        return []
    head = scene(volume, segmentation, spec)
    makers: dict[AttachmentKind, Callable[[Contents], bytes]] = {
        "preview": lambda _: draw_preview(head, segmentation, shown_modalities(spec)),
    }
    return [Attachment(kind, _saver(makers[kind])) for kind in ATTACHMENTS if kind in kinds]


def _saver(make: Callable[[Contents], bytes]) -> Callable[[Path, Contents], None]:
    return lambda path, contents: write_atomically(path, make(contents))
