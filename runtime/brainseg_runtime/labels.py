"""From logits to labels: thresholds, nested regions, and pieces too small to mean anything."""

from itertools import product

import numpy as np
from numpy.typing import NDArray

from brainseg_runtime.spec import ModelSpec, Region

__all__ = ["components", "decide", "drop_specks"]


def decide(logits: NDArray[np.float32], spec: ModelSpec) -> NDArray[np.uint8]:
    """The label of every voxel, (..., R) -> (...).

    Sigmoid models: from the outermost region inwards each one writes its own label over the last, so
    that an inner region is always part of the outer ones (the order of nnU-Net's region training).
    Softmax models: the label of the largest logit.
    """
    if spec.activation == "softmax":
        by_channel = np.array(spec.channels, dtype=np.uint8)
        return by_channel.take(logits.argmax(axis=-1))
    labels = np.zeros(logits.shape[:-1], dtype=np.uint8)
    for r, region in enumerate(spec.regions):
        labels[logits[..., r] >= _logit(region.threshold)] = spec.own_label(region)
    return labels


def drop_specks(labels: NDArray[np.uint8], spec: ModelSpec, voxel_volume: float) -> NDArray[np.uint8]:
    """Labels (I, J, K) without the connected pieces of a region below the spec's volume.

    ``voxel_volume`` in mm3. A dropped piece takes the label of the region around it, background where
    there is none.
    """
    smallest = spec.min_volume_mm3 / voxel_volume
    labels = labels.copy()
    for region in spec.regions:
        mask = np.isin(labels, region.labels)
        pieces = components(mask)
        sizes = np.bincount(pieces.ravel())
        small = sizes < smallest
        small[0] = False
        if small.any():
            labels[small[pieces]] = _around(region, spec)
    return labels


def components(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Number the connected pieces of a mask (I, J, K) from 1, voxels touching by a corner joined."""
    numbers = np.zeros(mask.shape, dtype=np.int32)
    where = np.nonzero(mask)
    if where[0].size == 0:
        return numbers
    box = tuple(slice(int(axis.min()), int(axis.max()) + 1) for axis in where)
    index = np.full(mask[box].shape, -1, dtype=np.int32)
    count = where[0].size
    index[mask[box]] = np.arange(count, dtype=np.int32)
    root = _roots(count, _touching(index))
    _, piece = np.unique(root, return_inverse=True)
    numbers[mask] = piece.astype(np.int32) + 1
    return numbers


def _touching(index: NDArray[np.int32]) -> NDArray[np.int32]:
    """Pairs of numbered voxels that touch, (2, pairs): each of the 13 directions once."""
    pairs = []
    for step in product((-1, 0, 1), repeat=3):
        if step <= (0, 0, 0):
            continue
        here = tuple(slice(max(0, -s), index.shape[a] - max(0, s)) for a, s in enumerate(step))
        there = tuple(slice(max(0, s), index.shape[a] - max(0, -s)) for a, s in enumerate(step))
        a, b = index[here], index[there]
        both = (a >= 0) & (b >= 0)
        pairs.append(np.stack([a[both], b[both]]))
    return np.concatenate(pairs, axis=1)


def _roots(count: int, pairs: NDArray[np.int32]) -> NDArray[np.int32]:
    """The smallest index connected with each of ``count`` nodes.

    Hooking and pointer jumping (Shiloach and Vishkin 1982): a few passes over whole arrays.
    """
    root = np.arange(count, dtype=np.int32)
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


def _logit(probability: float) -> np.float32:
    return np.float32(np.log(probability / (1.0 - probability)))
