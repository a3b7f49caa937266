"""From logits to labels: thresholds, nested regions, and pieces too small to mean anything."""

import numpy as np
from numpy.typing import NDArray

from brainseg_runtime.spec import ModelSpec, Region

__all__ = ["components", "decide", "drop_specks", "threshold_logit"]


def decide(logits: NDArray[np.float32], spec: ModelSpec) -> NDArray[np.uint8]:
    """The label of every voxel, (..., R) -> (...), by the channels that decide labels.

    Sigmoid models: from the outermost region inwards each one writes its own label over the last, so
    that an inner region is always part of the outer ones (the order of nnU-Net's region training).
    Softmax models: the label of the largest logit.
    """
    if spec.activation == "softmax":
        by_channel = np.array(spec.channels, dtype=np.uint8)
        largest: NDArray[np.uint8] = by_channel.take(logits[..., : len(spec.channels)].argmax(axis=-1))
        return largest
    labels = np.zeros(logits.shape[:-1], dtype=np.uint8)
    for r, region in enumerate(spec.regions):
        labels[logits[..., r] >= threshold_logit(region.threshold)] = spec.own_label(region)
    return labels


def drop_specks(labels: NDArray[np.uint8], spec: ModelSpec, voxel_volume: float) -> NDArray[np.uint8]:
    """Labels (I, J, K) without the connected pieces of every region below its smallest volume.

    ``voxel_volume`` in mm3. A dropped piece takes the label of the region around it, background where
    there is none.
    """
    judged = [region for region in spec.regions if region.min_volume_mm3 > voxel_volume]
    if not judged or not labels.any():
        return labels
    labels = labels.copy()
    # A tumour is a small part of a scan: nothing outside its box can change.
    box = labels[_box(labels)]
    for region in judged:
        pieces = components(np.isin(box, region.labels))
        small = np.bincount(pieces.ravel()) < region.min_volume_mm3 / voxel_volume
        small[0] = False
        if small.any():
            box[small[pieces]] = _around(region, spec)
    return labels


def _box(labels: NDArray[np.uint8]) -> tuple[slice, ...]:
    """The smallest box around every voxel that has a label; at least one has."""
    box: tuple[slice, ...] = ()
    for axis in range(labels.ndim):
        # Axis after axis on what is left, so that the whole volume is looked at once.
        left = labels[box]
        (hit,) = np.nonzero(left.any(axis=tuple(a for a in range(labels.ndim) if a != axis)))
        box += (slice(int(hit[0]), int(hit[-1]) + 1),)
    return box


def components(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Number the connected pieces of a mask (I, J, K) from 1, voxels touching by a corner joined.

    Works on runs along the last axis, of which there are far fewer than voxels.
    """
    numbers = np.zeros(mask.shape, dtype=np.int32)
    padded = np.zeros((*mask.shape[:2], mask.shape[2] + 2), dtype=np.int8)
    padded[..., 1:-1] = mask
    steps = np.diff(padded, axis=-1)
    first, end = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
    if first.size == 0:
        return numbers
    width = steps.shape[-1]
    root = _roots(first.size, _touching(first, end, mask.shape[1], width))
    _, piece = np.unique(root, return_inverse=True)
    numbers[mask] = np.repeat(piece.astype(np.int32) + 1, end - first)
    return numbers


def _touching(first: NDArray[np.intp], end: NDArray[np.intp], columns: int, width: int) -> NDArray[np.intp]:
    """Pairs of runs that touch, (2, pairs).

    A run is the half-open range ``first:end`` of an array of lines that are ``width`` long, with at
    least one place free between the runs of a line and at a line's end; ``columns`` lines make a plane.
    """
    line, column = first // width, first // width % columns
    pairs = []
    for planes, step in ((0, 1), (1, -1), (1, 0), (1, 1)):
        beside = (column + step >= 0) & (column + step < columns)
        shift = (planes * columns + step) * width
        mine = np.flatnonzero(beside & (line + planes * columns + step <= line[-1]))
        # Widened by one on each side, so that runs touching by a corner overlap.
        low = np.searchsorted(end, first[mine] + shift, side="left")
        high = np.searchsorted(first, end[mine] + shift, side="right")
        found = np.maximum(high - low, 0)
        offset = np.arange(found.sum()) - np.repeat(np.cumsum(found) - found, found)
        pairs.append(np.stack([np.repeat(mine, found), np.repeat(low, found) + offset]))
    return np.concatenate(pairs, axis=1)


def _roots(count: int, pairs: NDArray[np.intp]) -> NDArray[np.intp]:
    """The smallest index connected with each of ``count`` nodes.

    Hooking and pointer jumping (Shiloach and Vishkin 1982): a few passes over whole arrays.
    """
    root = np.arange(count)
    while True:
        a, b = root[pairs[0]], root[pairs[1]]
        apart = a != b
        if not apart.any():
            return root
        pairs, a, b = pairs[:, apart], a[apart], b[apart]
        np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
        while (root[root] != root).any():
            root = root[root]


def _around(region: Region, spec: ModelSpec) -> int:
    """The label of the innermost region around this one; 0 for an outermost region."""
    outer = [other for other in spec.regions if set(region.labels) < set(other.labels)]
    return spec.own_label(outer[-1]) if outer else 0


def threshold_logit(probability: float) -> np.float32:
    """The logit from which a voxel's probability reaches a threshold."""
    return np.float32(np.log(probability / (1.0 - probability)))
