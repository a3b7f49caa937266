"""What each kernel of ``scan.cu`` is told: the same placement and the same tiling that numpy works by."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from brainseg_runtime.certainty import levels, within
from brainseg_runtime.labels import threshold_logit
from brainseg_runtime.preprocess import Placement, Statistics, samples
from brainseg_runtime.spec import ModelSpec
from brainseg_runtime.tiles import Tiling

__all__ = ["Blend", "Check", "Count", "Decide", "Foreground", "Gather", "Put", "Steps", "Uploaded"]

Put = Callable[[NDArray[np.generic]], int]
"""Brings an array to where the kernels run, and gives its address there."""

Index = ctypes.c_longlong
Pointer = ctypes.c_void_p


class _Axis(ctypes.Structure):
    _fields_ = (("below", Pointer), ("above", Pointer), ("weight", Pointer), ("size", Index))


class _Box(ctypes.Structure):
    _fields_ = (("origin", Index), ("strides", Index * 3), ("shape", Index * 3))


class Foreground(ctypes.Structure):
    """Of the kernel of that name, field by field as in ``scan.cu``."""

    _fields_ = (
        ("scan", Pointer),
        ("volume", Index),
        ("channels", Index),
        ("box", _Box),
        ("background", Pointer),
        ("constant", Pointer),
        ("brain", Pointer),
    )


class Gather(ctypes.Structure):
    """Of the kernel of that name, field by field as in ``scan.cu``."""

    _fields_ = (
        ("scan", Pointer),
        ("volume", Index),
        ("channels", Index),
        ("box", _Box),
        ("brain", Pointer),
        ("mean", Pointer),
        ("scale", Pointer),
        ("axes", _Axis * 3),
        ("starts", Pointer),
        ("tiles", Index),
        ("tile", Index * 3),
        ("out", Pointer),
    )


class Check(ctypes.Structure):
    """Of the kernel of that name, field by field as in ``scan.cu``."""

    _fields_ = (("values", Pointer), ("count", Index), ("bad", Pointer))


class Blend(ctypes.Structure):
    """Of the kernel of that name, field by field as in ``scan.cu``."""

    _fields_ = (
        ("logits", Pointer),
        ("first", Index),
        ("tiles", Index),
        ("starts", Pointer * 3),
        ("weights", Pointer * 3),
        ("counts", Index * 3),
        ("tile", Index * 3),
        ("grid", Index * 3),
        ("channels", Index),
        ("out", Pointer),
    )


class _Restored(ctypes.Structure):
    _fields_ = (("logits", Pointer), ("grid", Index * 3), ("channels", Index), ("axes", _Axis * 3))


class Decide(ctypes.Structure):
    """Of the kernel of that name, field by field as in ``scan.cu``."""

    _fields_ = (
        ("restored", _Restored),
        ("threshold", Pointer),
        ("label", Pointer),
        ("box", _Box),
        ("labels", Pointer),
    )


class Count(ctypes.Structure):
    """Of the kernel of that name, field by field as in ``scan.cu``."""

    _fields_ = (
        ("restored", _Restored),
        ("within", Pointer),
        ("levels", Pointer),
        ("depth", Index),
        ("out", Pointer),
    )


@dataclass(frozen=True, eq=False)
class Uploaded:
    """A raw scan where the kernels run."""

    address: int
    data: NDArray[np.float32]
    """(I, J, K, C), without gaps; where a voxel lies in this memory, it lies in that of the kernels."""

    @classmethod
    def of(cls, data: NDArray[np.float32], put: Put) -> "Uploaded":
        """Bring a scan (I, J, K, C) there as it lies in memory: no axis is turned on the way."""
        order = sorted(range(4), key=lambda axis: -data.strides[axis])
        if not data.transpose(order).flags.c_contiguous:
            data, order = np.ascontiguousarray(data), [0, 1, 2, 3]
        return cls(put(data.transpose(order)), data)


@dataclass(frozen=True)
class Steps:
    """The kernels' arguments for one scan; memory is named by its address, tiles by their place in the order.

    Labels and counts are those of a sigmoid model.
    """

    spec: ModelSpec
    placement: Placement
    statistics: Statistics
    tiling: Tiling
    put: Put

    def foreground(self, scan: Uploaded, brain: int) -> tuple[Foreground, int]:
        """Raw scan -> brain (i, j, k) of the box, and how many threads that takes."""
        i, j, k = self.placement.box_shape
        told = Foreground(
            scan=scan.address,
            volume=scan.data.strides[3] // scan.data.itemsize,
            channels=len(self.spec.modalities),
            box=self._box(scan.data[..., 0]),
            background=self.put(self.statistics.background),
            constant=self.put(self.statistics.constant.astype(np.uint8)),
            brain=brain,
        )
        return told, i * j * k

    def gather(self, scan: Uploaded, brain: int, first: int, count: int, out: int) -> tuple[Gather, int]:
        """Raw scan and brain -> ``count`` tiles from ``first`` on, (N, C, i, j, k)."""
        mean, scale = self._normal
        told = Gather(
            scan=scan.address,
            volume=scan.data.strides[3] // scan.data.itemsize,
            channels=len(self.spec.modalities),
            box=self._box(scan.data[..., 0]),
            brain=brain,
            mean=mean,
            scale=scale,
            axes=self._to_grid,
            starts=self._starts + first * 3 * 4,
            tiles=count,
            tile=(Index * 3)(*self.tiling.tile),
            out=out,
        )
        return told, count * len(self.spec.modalities) * self.tiling.voxels

    def check(self, logits: int, count: int, bad: int) -> tuple[Check, int]:
        """Logits of ``count`` tiles (N, R, i, j, k) -> 1 at ``bad`` where any is not finite."""
        values = count * self.spec.output_channels * self.tiling.voxels
        return Check(values=logits, count=values, bad=bad), values

    def blend(self, logits: int, first: int, count: int, out: int) -> tuple[Blend, int]:
        """Logits of ``count`` tiles from ``first`` on, (N, R, i, j, k) -> logits of the grid (R, i, j, k).

        Once all tiles were given, in their order, ``out`` holds the grid's logits.
        """
        starts, weights = self._along_axes
        i, j, k = self.tiling.shape
        told = Blend(
            logits=logits,
            first=first,
            tiles=count,
            starts=starts,
            weights=weights,
            counts=(Index * 3)(*map(len, self.tiling.starts)),
            tile=(Index * 3)(*self.tiling.tile),
            grid=(Index * 3)(i, j, k),
            channels=self.spec.output_channels,
            out=out,
        )
        return told, self.spec.output_channels * i * j * k

    def decide(self, logits: int, labels: int) -> tuple[Decide, int]:
        """Logits of the grid (R, i, j, k) -> labels (I, J, K), which must be 0 before."""
        limits = [threshold_logit(region.threshold) for region in self.spec.regions]
        own = [self.spec.own_label(region) for region in self.spec.regions]
        i, j, k = self.placement.box_shape
        told = Decide(
            restored=self._restored(logits),
            threshold=self.put(np.array(limits, dtype=np.float32)),
            label=self.put(np.array(own, dtype=np.uint8)),
            box=self._box(np.empty(self.placement.scan.shape, dtype=np.uint8)),
            labels=labels,
        )
        return told, i * j * k

    @property
    def lines(self) -> tuple[int, int, int, int]:
        """The shape of what ``count`` gives: regions, levels, j, k of the box."""
        _, j, k = self.placement.box_shape
        regions, depth = levels(self.spec).shape
        return regions, depth, j, k

    def count(self, logits: int, out: int) -> tuple[Count, int]:
        """Logits of the grid (R, i, j, k) -> voxels at or above each level, line by line, int32 ``lines``."""
        regions, depth, j, k = self.lines
        told = Count(
            restored=self._restored(logits),
            within=self.put(within(self.spec).astype(np.uint8)),
            levels=self.put(levels(self.spec)),
            depth=depth,
            out=out,
        )
        return told, regions * depth * j * k

    def _restored(self, logits: int) -> _Restored:
        return _Restored(logits, (Index * 3)(*self.placement.grid), self.spec.label_channels, self._to_scan)

    def _box(self, whole: NDArray[np.generic]) -> _Box:
        """The brain's box within an array (I, J, K), wherever that has its voxels in memory."""
        box = self.placement.reorientation.apply(whole)[self.placement.box]
        size = whole.itemsize
        origin = box.ctypes.data - whole.ctypes.data
        return _Box(
            origin // size, (Index * 3)(*(stride // size for stride in box.strides)), (Index * 3)(*box.shape)
        )

    # What every pass is told alike is brought there once.

    @cached_property
    def _normal(self) -> tuple[int, int]:
        if self.spec.normalisation != "zscore":
            return 0, 0
        return self.put(self.statistics.mean), self.put(self.statistics.scale)

    @cached_property
    def _starts(self) -> int:
        """(tiles, 3) int32."""
        places = [[s[at] for s, at in zip(self.tiling.starts, place, strict=True)] for place in self.tiling]
        return self.put(np.array(places, dtype=np.int32))

    @cached_property
    def _along_axes(self) -> "tuple[ctypes.Array[Pointer], ctypes.Array[Pointer]]":
        """Per axis: the tiles' starts, and their weights one after the other."""
        if len(self.tiling) == 1:  # which numpy takes as it is
            weights = [np.ones(n, dtype=np.float32) for n in self.tiling.tile]
        else:
            weights = [np.concatenate(rows) for rows in self.tiling.weights()]
        starts = [np.array(starts, dtype=np.int32) for starts in self.tiling.starts]
        return (Pointer * 3)(*map(self.put, starts)), (Pointer * 3)(*map(self.put, weights))

    @cached_property
    def _to_grid(self) -> "ctypes.Array[_Axis]":
        return self._axes(self.placement.box_shape, self.placement.grid)

    @cached_property
    def _to_scan(self) -> "ctypes.Array[_Axis]":
        return self._axes(self.placement.grid, self.placement.box_shape)

    def _axes(self, old: tuple[int, ...], new: tuple[int, ...]) -> "ctypes.Array[_Axis]":
        axes = []
        for before, after in zip(old, new, strict=True):
            below, above, weight = samples(before, after)
            tables = self.put(below.astype(np.int32)), self.put(above.astype(np.int32)), self.put(weight)
            axes.append(_Axis(*tables, after))
        return (_Axis * 3)(*axes)
