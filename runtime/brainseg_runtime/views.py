"""A scan and its labels as one looks at them: three planes in grey values, the patient's left on the right.

Arrays of a scene run to L, P and I, so that a plane is a cut without any turning: columns run to the
patient's left (sagittal: to the back), rows run down.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from brainseg_runtime.geometry import Shape, to_canonical
from brainseg_runtime.labels import components
from brainseg_runtime.spec import ModelSpec
from brainseg_runtime.volume import Segmentation, Volume

__all__ = [
    "PLANES",
    "Colour",
    "Plane",
    "Scene",
    "label_colours",
    "nearest",
    "outline",
    "region_colours",
    "scene",
    "shrink",
]

Colour = tuple[int, int, int]
Grey = NDArray[np.uint8]
Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True)
class Plane:
    """One of the three ways to cut a scene."""

    name: str
    axis: int
    """The axis that the plane is a slice of."""
    sides: tuple[str, str, str, str]
    """The patient's directions at the left, right, top and bottom of the picture."""

    def cut(self, array: NDArray[Scalar], at: int) -> NDArray[Scalar]:
        """(L, P, I, ...) -> (rows, columns, ...): one slice, as it stands on a screen."""
        picture: NDArray[Scalar] = np.moveaxis(array, self.axis, 0)[at].swapaxes(0, 1)
        return picture

    def size(self, extent: tuple[float, float, float]) -> tuple[float, float]:
        """(width, height) of the plane's picture for an extent along L, P, I."""
        across, down = (extent[axis] for axis in range(3) if axis != self.axis)
        return across, down


PLANES = (
    Plane("axial", 2, ("R", "L", "A", "P")),
    Plane("coronal", 1, ("R", "L", "S", "I")),
    Plane("sagittal", 0, ("A", "P", "S", "I")),
)
"""The radiological convention: the patient is seen from the feet, from the front, and from the left."""


@dataclass(frozen=True, eq=False)
class Scene:
    """The head of a scan, cut out of its volume."""

    images: Mapping[str, Grey]
    """Modality -> grey values (L, P, I)."""
    labels: NDArray[np.uint8]
    """(L, P, I)."""
    spacing: tuple[float, float, float]
    """Voxel size along L, P, I, in mm."""
    focus: Shape
    """Where the largest lesion's largest cuts are, or the middle without a lesion."""

    @property
    def shape(self) -> Shape:
        """Voxels along L, P, I."""
        x, y, z = self.labels.shape
        return x, y, z

    @property
    def extent(self) -> tuple[float, float, float]:
        """Size along L, P, I, in mm."""
        x, y, z = (n * mm for n, mm in zip(self.shape, self.spacing, strict=True))
        return x, y, z

    def reduced(self, voxels: int) -> "Scene":
        """The same scene on a coarser grid of at most so many voxels, where it has more."""
        if math.prod(self.shape) <= voxels:
            return self
        mm = min(self.spacing)
        while math.prod(_sizes(self, mm)) > voxels:
            mm *= 1.02
        shape = _sizes(self, mm)
        return replace(
            self,
            images={name: shrink(image, shape).astype(np.uint8) for name, image in self.images.items()},
            labels=nearest(self.labels, shape),
            spacing=_divided(self.extent, shape),
            focus=_scaled(self.focus, self.shape, shape),
        )


def scene(volume: Volume, segmentation: Segmentation, spec: ModelSpec) -> Scene:
    """Cut the head out of a scan and bring every modality that was given to grey values.

    Grey runs from the 1st to the 99.9th percentile of what is not background. No labelled voxel is cut
    off.
    """
    to_ras = to_canonical(segmentation.geometry)
    labels = to_ras.apply(segmentation.labels)[::-1, ::-1, ::-1]
    given = [(c, m.name) for c, m in enumerate(spec.modalities) if m.name not in volume.absent]
    images = [to_ras.apply(volume.data[..., c])[::-1, ::-1, ::-1] for c, _ in given]
    windows = [_window(image) for image in images]
    head = _head(images, windows, labels)
    cut = np.ascontiguousarray(labels[head])
    return Scene(
        images={
            modality: _grey(image[head], window)
            for (_, modality), image, window in zip(given, images, windows, strict=True)
        },
        labels=cut,
        spacing=to_ras.geometry(segmentation.geometry).spacing,
        focus=_focus(cut > 0),
    )


def outline(mask: NDArray[np.bool_], thickness: int = 1) -> NDArray[np.bool_]:
    """The pixels of a mask (rows, columns) that lie within so many steps of a pixel outside of it."""
    inside = mask
    for _ in range(thickness):
        padded = np.pad(inside, 1)
        beside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        inside = inside & beside
    return mask & ~inside


def region_colours(segmentation: Segmentation) -> dict[str, Colour]:
    """Region -> colour, in the order of the regions."""
    return {name: PALETTE[n % len(PALETTE)] for n, name in enumerate(segmentation.regions)}


def label_colours(segmentation: Segmentation) -> dict[int, Colour]:
    """Label value -> the colour of the innermost region that holds it; grey where none does."""
    colours = region_colours(segmentation)
    found: dict[int, Colour] = {}
    for value in sorted(segmentation.names):
        holding = [name for name, values in segmentation.regions.items() if value in values]
        innermost = min(holding, key=lambda name: len(segmentation.regions[name]), default=None)
        found[value] = (160, 160, 160) if innermost is None else colours[innermost]
    return found


PALETTE: tuple[Colour, ...] = (
    (64, 180, 220),
    (235, 85, 60),
    (255, 212, 40),
    (60, 190, 120),
    (165, 120, 245),
    (245, 160, 190),
)
"""A colour a region, in the order of the spec: hues that a red-green-blind eye tells apart too."""


def shrink(array: NDArray[Scalar], shape: Shape) -> NDArray[np.float32]:
    """(x, y, z) -> a coarser shape by the mean of what falls together; axes that grow repeat voxels."""
    values = array.astype(np.float32)
    for axis, (old, new) in enumerate(zip(array.shape, shape, strict=True)):
        if new < old:
            starts = np.arange(new) * old // new
            counts = np.diff(np.append(starts, old)).astype(np.float32)
            values = np.add.reduceat(values, starts, axis=axis)
            values /= counts.reshape((-1,) + (1,) * (2 - axis))
        elif new > old:
            values = np.take(values, _nearest(old, new), axis=axis)
    return values


def nearest(array: NDArray[Scalar], shape: Shape) -> NDArray[Scalar]:
    """(x, y, z) -> another shape, every voxel the nearest old one."""
    for axis, (old, new) in enumerate(zip(array.shape, shape, strict=True)):
        array = np.take(array, _nearest(old, new), axis=axis)
    return array


def _nearest(old: int, new: int) -> NDArray[np.intp]:
    return ((np.arange(new) + 0.5) * old / new).astype(np.intp)


def _window(image: NDArray[np.float32]) -> tuple[float, float]:
    """The intensities that become black and white."""
    inside = image[::3, ::3, ::3]
    inside = inside[inside > inside.min()]
    low, high = np.percentile(inside, (1, 99.9)) if inside.size else (0.0, 1.0)
    return float(low), float(max(high, low + 1e-6))


def _grey(image: NDArray[np.float32], window: tuple[float, float]) -> Grey:
    low, high = window
    scaled = np.ascontiguousarray(image) - np.float32(low)
    scaled *= np.float32(255 / (high - low))
    return np.clip(scaled, 0, 255, out=scaled).astype(np.uint8)


def _head(
    images: Sequence[NDArray[np.float32]], windows: Sequence[tuple[float, float]], labels: NDArray[np.uint8]
) -> tuple[slice, slice, slice]:
    """The box of what is bright in any modality, and of every label; everything without either.

    A plane counts as bright from 1 % of its voxels on, so that noise around a head does not.
    """
    bright = np.zeros(labels.shape, dtype=bool)
    for image, (low, high) in zip(images, windows, strict=True):
        bright |= image > low + BRIGHT * (high - low)
    box = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        kept = (bright.mean(axis=others) > 0.01) | labels.any(axis=others)
        hit = np.flatnonzero(kept)
        box.append(slice(int(hit[0]), int(hit[-1]) + 1) if hit.size else slice(None))
    x, y, z = box
    return x, y, z


BRIGHT = 0.1
"""Part of the way from black to white from which a voxel is taken for tissue."""


def _focus(lesion: NDArray[np.bool_]) -> Shape:
    """Along every axis the slice with most of the largest connected piece."""
    if lesion.any():
        pieces = components(lesion)
        sizes = np.bincount(pieces.ravel())
        sizes[0] = 0
        lesion = pieces == sizes.argmax()
        x, y, z = (_largest(lesion, axis) for axis in range(3))
    else:
        x, y, z = (n // 2 for n in lesion.shape)
    return x, y, z


def _largest(lesion: NDArray[np.bool_], axis: int) -> int:
    """The slice with most of a lesion; the middle one of several."""
    areas = np.count_nonzero(lesion, axis=tuple(a for a in range(3) if a != axis))
    largest = np.flatnonzero(areas == areas.max())
    return int(largest[len(largest) // 2])


def _sizes(whole: Scene, mm: float) -> Shape:
    """Voxels along each axis if none is finer than ``mm``."""
    x, y, z = (
        max(1, min(n, round(extent / mm))) for n, extent in zip(whole.shape, whole.extent, strict=True)
    )
    return x, y, z


def _divided(extent: tuple[float, float, float], shape: Shape) -> tuple[float, float, float]:
    x, y, z = (mm / n for mm, n in zip(extent, shape, strict=True))
    return x, y, z


def _scaled(at: Shape, old: Shape, new: Shape) -> Shape:
    x, y, z = (int((a + 0.5) * n / o) for a, o, n in zip(at, old, new, strict=True))
    return x, y, z
