"""What each kernel of ``scan.cu`` is told: the same placement and the same tiling that numpy works by."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from brainseg_runtime.labels import threshold_logit
from brainseg_runtime.preprocess import Placement, samples
from brainseg_runtime.spec import ModelSpec
from brainseg_runtime.tiles import Tiling

__all__ = ["Blend", "Decide", "Foreground", "Gather", "Put", "Statistics", "Steps"]

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


class Blend(ctypes.Structure):
    """Of the kernel of that name, field by field as in ``scan.cu``."""

    _fields_ = (
        ("logits", Pointer),
        ("starts", Pointer * 3),
        ("weights", Pointer * 3),
        ("counts", Index * 3),
        ("tile", Index * 3),
        ("grid", Index * 3),
        ("channels", Index),
        ("out", Pointer),
    )


class Decide(ctypes.Structure):
    """Of the kernel of that name, field by field as in ``scan.cu``."""

    _fields_ = (
        ("logits", Pointer),
        ("grid", Index * 3),
        ("channels", Index),
        ("softmax", Index),
        ("axes", _Axis * 3),
        ("threshold", Pointer),
        ("label", Pointer),
        ("box", _Box),
        ("labels", Pointer),
        ("bad", Pointer),
    )


@dataclass(frozen=True, eq=False)
class Statistics:
    """What is known of a scan's intensities, a value a channel."""

    background: NDArray[np.float32]
    constant: NDArray[np.bool_]
    """Whether the channel has a background."""
    mean: NDArray[np.float32]
    """Over the brain."""
    scale: NDArray[np.float32]
    """1 / standard deviation over the brain."""


@dataclass(frozen=True)
class Steps:
    """The kernels' arguments for one scan; buffers are named by their addresses."""

    spec: ModelSpec
    placement: Placement
    tiling: Tiling
    put: Put

    def foreground(self, scan: int, statistics: Statistics, brain: int) -> tuple[Foreground, int]:
        """Raw scan (C, I, J, K) -> brain (i, j, k) of the box, and how many threads that takes."""
        i, j, k = self.placement.box_shape
        told = Foreground(
            scan=scan,
            volume=self._voxels(),
            channels=len(self.spec.modalities),
            box=self._box(),
            background=self.put(statistics.background),
            constant=self.put(statistics.constant.astype(np.uint8)),
            brain=brain,
        )
        return told, i * j * k

    def gather(self, scan: int, brain: int, statistics: Statistics, tiles: int) -> tuple[Gather, int]:
        """Raw scan (C, I, J, K) and brain -> every tile, (N, C, i, j, k)."""
        zscore = self.spec.normalisation == "zscore"
        starts = [[s[at] for s, at in zip(self.tiling.starts, place, strict=True)] for place in self.tiling]
        told = Gather(
            scan=scan,
            volume=self._voxels(),
            channels=len(self.spec.modalities),
            box=self._box(),
            brain=brain,
            mean=self.put(statistics.mean) if zscore else 0,
            scale=self.put(statistics.scale) if zscore else 0,
            axes=self._axes(self.placement.box_shape, self.placement.grid),
            starts=self.put(np.array(starts, dtype=np.int32)),
            tiles=len(self.tiling),
            tile=(Index * 3)(*self.tiling.tile),
            out=tiles,
        )
        return told, len(self.tiling) * len(self.spec.modalities) * self.tiling.voxels

    def blend(self, logits: int, out: int) -> tuple[Blend, int]:
        """Logits of every tile (N, R, i, j, k) -> logits of the grid (R, i, j, k)."""
        if len(self.tiling) == 1:  # which numpy takes as it is
            weights = [np.ones(n, dtype=np.float32) for n in self.tiling.tile]
        else:
            weights = [np.concatenate(rows) for rows in self.tiling.weights()]
        starts = [np.array(starts, dtype=np.int32) for starts in self.tiling.starts]
        i, j, k = self.tiling.shape
        told = Blend(
            logits=logits,
            starts=(Pointer * 3)(*map(self.put, starts)),
            weights=(Pointer * 3)(*map(self.put, weights)),
            counts=(Index * 3)(*map(len, self.tiling.starts)),
            tile=(Index * 3)(*self.tiling.tile),
            grid=(Index * 3)(i, j, k),
            channels=self.spec.output_channels,
            out=out,
        )
        return told, self.spec.output_channels * i * j * k

    def decide(self, logits: int, labels: int, bad: int) -> tuple[Decide, int]:
        """Logits of the grid (R, i, j, k) -> labels (I, J, K), which must be 0 before."""
        spec, softmax = self.spec, self.spec.activation == "softmax"
        own = spec.channels if softmax else tuple(spec.own_label(region) for region in spec.regions)
        limits = [] if softmax else [threshold_logit(region.threshold) for region in spec.regions]
        i, j, k = self.placement.box_shape
        told = Decide(
            logits=logits,
            grid=(Index * 3)(*self.placement.grid),
            channels=spec.label_channels,
            softmax=int(softmax),
            axes=self._axes(self.placement.grid, self.placement.box_shape),
            threshold=self.put(np.array(limits, dtype=np.float32)) if limits else 0,
            label=self.put(np.array(own, dtype=np.uint8)),
            box=self._box(),
            labels=labels,
            bad=bad,
        )
        return told, i * j * k

    def _voxels(self) -> int:
        i, j, k = self.placement.scan.shape
        return i * j * k

    def _box(self) -> _Box:
        """The brain's box within an array (I, J, K) in the file's own order."""
        whole = np.empty(self.placement.scan.shape, dtype=np.uint8)
        box = self.placement.reorientation.apply(whole)[self.placement.box]
        origin = box.ctypes.data - whole.ctypes.data
        return _Box(origin, (Index * 3)(*box.strides), (Index * 3)(*box.shape))

    def _axes(self, old: tuple[int, ...], new: tuple[int, ...]) -> "ctypes.Array[_Axis]":
        axes = []
        for before, after in zip(old, new, strict=True):
            below, above, weight = samples(before, after)
            tables = self.put(below.astype(np.int32)), self.put(above.astype(np.int32)), self.put(weight)
            axes.append(_Axis(*tables, after))
        return (_Axis * 3)(*axes)
