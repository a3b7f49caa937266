"""One slice: what a numbered ``.mat`` file holds, upright and checked.

The files are MATLAB v7.3, which is HDF5. MATLAB stores columns first, so h5py shows every array
transposed; text is an array of character codes.
"""

import hashlib
import io
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
from brainseg_runtime.errors import ScanRefused
from brainseg_runtime.overlap import dice
from matplotlib.path import Path as Polygon
from numpy.typing import NDArray

__all__ = ["KINDS", "SIZES", "Slice", "polygon_mask", "read_slice"]

KINDS = {1: "meningioma", 2: "glioma", 3: "pituitary"}
"""Value of ``label`` -> the tumour's type."""
SIZES = (256, 512)
"""Rows, and columns, that a slice may have."""
LEAST_AGREEMENT = 0.9
"""Dice of mask and polygon: above 0.998 on slices 995 to 999; half a pixel's error of any of the 3064
polygons leaves 0.93 or more."""

_MAX_VALUES = 512 * 512


@dataclass(frozen=True, eq=False)
class Slice:
    """One T1-weighted slice after contrast, with its tumour."""

    number: int
    """Of the file, 1 to 3064."""
    patient: str
    kind: int
    """A key of ``KINDS``."""
    image: NDArray[np.int16]
    """(rows, columns), as a radiologist sees it."""
    mask: NDArray[np.bool_]
    """(rows, columns)."""
    border: NDArray[np.float64]
    """(n, 2): column and row of the corners of the tumour's outline, the first pixel's centre at 1, 1."""
    sha256: str
    """Of the file."""


def read_slice(content: bytes, number: int) -> Slice:
    """Read the bytes of a numbered ``.mat`` file.

    Raises:
        ScanRefused: ``E_SLICE`` for anything but such a slice, ``E_OUTLINE`` where its mask and its
            polygon show different tumours.
    """
    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            group = file["cjdata"]
            kind = int(_values(group, "label").item())
            patient = _text(_values(group, "PID"))
            image, mask = _values(group, "image").T, _values(group, "tumorMask").T
            border = _values(group, "tumorBorder").astype(np.float64).reshape(-1, 2)
    except Exception as error:  # h5py fails in many ways on damaged files
        raise _not_a_slice(number, f"{type(error).__name__}: {error}") from error
    if kind not in KINDS:
        raise _not_a_slice(number, f"its label is {kind}")
    if image.shape not in [(n, n) for n in SIZES] or mask.shape != image.shape:
        raise _not_a_slice(number, f"its image has the shape {image.shape}, its mask {mask.shape}")
    if not np.issubdtype(image.dtype, np.integer) or not np.isin(mask, (0, 1)).all() or not mask.any():
        raise _not_a_slice(number, "its image is not of integers, or its mask not of some 0 and some 1")
    if np.abs(image.astype(np.int64)).max() > np.iinfo(np.int16).max or image.min() == image.max():
        raise _not_a_slice(number, f"its image goes from {image.min()} to {image.max()}")
    found = Slice(
        number=number,
        patient=patient,
        kind=kind,
        image=np.ascontiguousarray(image, np.int16),
        mask=np.ascontiguousarray(mask, bool),
        border=border,
        sha256=hashlib.sha256(content).hexdigest(),
    )
    _require_agreement(found)
    return found


def polygon_mask(border: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels (rows, columns) whose centres lie inside an outline (n, 2), as ``Slice.border``."""
    rows, columns = np.mgrid[1 : shape[0] + 1, 1 : shape[1] + 1]
    centres = np.stack([columns.ravel(), rows.ravel()], axis=-1)
    inside: NDArray[np.bool_] = Polygon(border).contains_points(centres).reshape(shape)
    return inside


def _values(group: h5py.Group, name: str) -> NDArray[Any]:
    """A dataset's values, if they lie in the file itself and are no more than a slice has."""
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise KeyError(f"{name} is missing, or a link")
    dataset = group[name]
    if dataset.external or dataset.is_virtual or dataset.size > _MAX_VALUES or dataset.ndim != 2:
        raise ValueError(f"{name} is not a small matrix")
    values: NDArray[Any] = dataset[()]
    return values


def _text(codes: NDArray[Any]) -> str:
    """MATLAB's text: one uint16 per character, zeros for padding."""
    if codes.dtype.kind not in "ui":
        raise ValueError("PID is not made of character codes")
    text = "".join(chr(code) for code in codes.ravel() if code).strip()
    if not text or not text.isprintable() or len(text) > 64:
        raise ValueError(f"PID is {text!r}")
    return text


def _require_agreement(found: Slice) -> None:
    drawn = polygon_mask(found.border, (found.mask.shape[0], found.mask.shape[1]))
    agreement = dice(drawn, found.mask)
    if agreement < LEAST_AGREEMENT:
        raise ScanRefused(
            "E_OUTLINE",
            f"slice {found.number}: its mask and its polygon agree with a Dice of {agreement:.3f} only.",
            "Download the file again.",
        )


def _not_a_slice(number: int, why: str) -> ScanRefused:
    return ScanRefused(
        "E_SLICE", f"{number}.mat is no slice of figshare 1512427: {why}.", "Download the file again."
    )
