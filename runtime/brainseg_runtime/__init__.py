"""Brain-tumour scans in, segmentations out.

with load() as segmenter:  # the default model; or load("bundles/mine")
    for scan in find_scans("scans/", segmenter.spec).scans:
        write(segmenter.segment(read(scan)), "out/")
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from brainseg_runtime.bundle import Bundle as Bundle
    from brainseg_runtime.engines.base import Engine as Engine
    from brainseg_runtime.errors import BrainsegError as BrainsegError
    from brainseg_runtime.geometry import Geometry as Geometry
    from brainseg_runtime.outputs import write as write
    from brainseg_runtime.scans import find_scans as find_scans
    from brainseg_runtime.scans import read as read
    from brainseg_runtime.segmenter import Segmenter as Segmenter
    from brainseg_runtime.segmenter import load as load
    from brainseg_runtime.spec import ModelSpec as ModelSpec
    from brainseg_runtime.volume import Segmentation as Segmentation
    from brainseg_runtime.volume import Volume as Volume

_HOMES = {
    "Bundle": "bundle",
    "Engine": "engines.base",
    "BrainsegError": "errors",
    "Geometry": "geometry",
    "write": "outputs",
    "find_scans": "scans",
    "read": "scans",
    "Segmenter": "segmenter",
    "load": "segmenter",
    "ModelSpec": "spec",
    "Segmentation": "volume",
    "Volume": "volume",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    """Import a public name's home on first use, so that ``brainseg-infer --help`` answers at once."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
