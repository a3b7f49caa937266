"""Whether the files of a scan show what their names say, as far as four images of one head can tell.

Everything here warns and nothing refuses: the limits rest on the scans that there are, which are few, and
``make torture`` prints how often they hit and miss. A scan of which every file is another patient's, or
mirrored, or mirrored with its header, looks right and is not seen.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainseg_runtime.heads import BRAIN_ML, foreground_ml
from brainseg_runtime.quality import Flag
from brainseg_runtime.resample import background
from brainseg_runtime.volume import Volume

__all__ = ["MIXED_UP", "fingerprint"]

MIXED_UP = ("Q_EXCHANGED", "Q_OTHER_HEAD", "Q_MIRRORED")
"""The flags that are raised here."""

Coarse = NDArray[np.float64]
Mask = NDArray[np.bool_]

SAMPLE_MM = 2.0
"""Distance of the voxels that are looked at; blocks of 2 x 2 x 2 of them are averaged."""
MIN_BLOCKS = 1000
"""Blocks of brain below which nothing is said: 64 ml."""
CSF_SHARE = 0.01
"""Of the brain that looks like fluid the wrong way round. In 14 scans, two of them real, at most 0.005; the
right way round 0.03 to 0.12."""
ENHANCED_SHARE = 0.01
ENHANCED_TIMES = 1.5
"""How many times as much of the brain has to be darker on T1c than on T1 as is brighter. In the same scans at
most 0.4 times, where the tumour hardly enhances."""
SAME_BRAIN = 0.95
"""Dice of two skull-stripped images' foregrounds. In the same scans at least 0.999, of two patients below
this in all of them (of the two real ones 0.87)."""


def fingerprint(volume: Volume, names: Sequence[str]) -> list[Flag]:
    """Reasons to doubt that files are the modality, the patient and the side that they are taken for.

    ``names`` are the modalities of the volume's channels; those of T1, T1c, T2 and FLAIR are looked at.
    """
    given = [name for name in names if name not in volume.absent]
    coarse = {name: _coarse(volume, names.index(name)) for name in given}
    if not coarse:
        return []
    masks = {name: mask for name, (_, mask) in coarse.items()}
    inside = np.logical_and.reduce(list(masks.values()))
    if np.count_nonzero(inside) < MIN_BLOCKS or min(inside.shape) < 4:
        return list(_other_heads(volume, masks))
    scaled = {name: _scaled(image, inside) for name, (image, _) in coarse.items()}
    return [
        *_fluid(scaled, inside),
        *_contrast(scaled, inside),
        *_other_heads(volume, masks),
        *_mirrored(scaled, inside, volume),
    ]


def _coarse(volume: Volume, c: int) -> tuple[Coarse, Mask]:
    """One channel as block means, and which blocks are mostly foreground."""
    channel = volume.data[..., c]
    steps = [max(1, round(SAMPLE_MM / mm)) for mm in volume.geometry.spacing]
    sampled = channel[:: steps[0], :: steps[1], :: steps[2]]
    mean = _summed(sampled.astype(np.float64)) / 8
    return mean, _summed((sampled != background(channel)).astype(np.uint8)) > 4


def _summed(sampled: NDArray[Any]) -> NDArray[Any]:
    """The sums of blocks of 2 x 2 x 2; what is left at an end is left out."""
    for axis, size in enumerate(sampled.shape):
        first, second = (
            sampled[(slice(None),) * axis + (slice(start, size // 2 * 2, 2),)] for start in (0, 1)
        )
        sampled = first + second
    return sampled


def _scaled(image: Coarse, inside: Mask) -> Coarse:
    """Median 0 and quartiles 1 apart within the brain, and 0 outside of it."""
    low, middle, high = np.percentile(image[inside], [25, 50, 75])
    return np.where(inside, (image - middle) / max(high - low, 1e-6), 0.0)


def _fluid(scaled: Mapping[str, Coarse], inside: Mask) -> Iterator[Flag]:
    """Fluid is bright on T2 and dark on FLAIR."""
    if not {"t2", "flair"} <= set(scaled):
        return
    t2, flair = scaled["t2"][inside], scaled["flair"][inside]
    right = float(np.mean((t2 > 1) & (flair < -0.3)))
    wrong = float(np.mean((flair > 1) & (t2 < -0.3)))
    if wrong > CSF_SHARE and wrong > 2 * right:
        words = (
            f"t2 and flair may be exchanged: {wrong:.1%} of the brain is bright on flair and dark on t2, as "
            f"fluid should be the other way round, and {right:.1%} is that."
        )
        yield Flag("Q_EXCHANGED", words, numbers={"right": round(right, 4), "wrong": round(wrong, 4)})


def _contrast(scaled: Mapping[str, Coarse], inside: Mask) -> Iterator[Flag]:
    """Contrast agent makes vessels and tumours brighter, and nothing darker."""
    if not {"t1", "t1c"} <= set(scaled):
        return
    gain = (scaled["t1c"] - scaled["t1"])[inside]
    gain = gain - np.median(gain)
    usual = 4 * float(np.median(np.abs(gain)))
    brighter, darker = float(np.mean(gain > usual)), float(np.mean(gain < -usual))
    if darker > ENHANCED_SHARE and darker > ENHANCED_TIMES * brighter:
        words = (
            f"t1 and t1c may be exchanged: {darker:.1%} of the brain is much darker on t1c than on t1, "
            f"{brighter:.1%} much brighter."
        )
        yield Flag("Q_EXCHANGED", words, numbers={"brighter": round(brighter, 4), "darker": round(darker, 4)})


def _other_heads(volume: Volume, masks: Mapping[str, Mask]) -> Iterator[Flag]:
    """Brains of one patient on one grid fill the same voxels; heads with their skull are not compared."""
    # Slices that are fewer than a block is thick give no blocks, which say nothing.
    for one, other in combinations((name for name, mask in masks.items() if mask.any()), 2):
        both = np.count_nonzero(masks[one] & masks[other])
        held = np.count_nonzero(masks[one]) + np.count_nonzero(masks[other])
        dice = 2 * int(both) / int(held)
        if dice < SAME_BRAIN:
            if foreground_ml(volume) > BRAIN_ML:
                return
            words = (
                f"{one} and {other} may not be of one patient, or not lie on each other: "
                f"their brains overlap with a Dice of {dice:.2f}."
            )
            yield Flag("Q_OTHER_HEAD", words, numbers={"dice": round(dice, 4), "limit": SAME_BRAIN})


def _mirrored(scaled: Mapping[str, Coarse], inside: Mask, volume: Volume) -> Iterator[Flag]:
    """Edges of one head lie on each other as they are, not after one image is mirrored left to right."""
    axis = int(np.argmax(np.abs(volume.geometry.affine[0, :3])))
    across = np.flatnonzero(inside.any(axis=tuple(n for n in range(3) if n != axis)))
    width = slice(int(across[0]), int(across[-1]) + 1)
    edges = {name: _edges(image) for name, image in scaled.items()}
    first, *rest = edges
    for name in rest:
        one, other = (np.moveaxis(edges[n], axis, 0)[width] for n in (name, first))
        within = np.moveaxis(inside, axis, 0)[width]
        as_is, mirrored = _alike(one, other, within), _alike(one[::-1], other, within & within[::-1])
        if mirrored > as_is:
            words = (
                f"{name} may be mirrored left to right against {first}: their edges agree more after "
                f"mirroring ({mirrored:.2f}) than as they are ({as_is:.2f})."
            )
            yield Flag(
                "Q_MIRRORED", words, numbers={"as_is": round(as_is, 4), "mirrored": round(mirrored, 4)}
            )


def _edges(image: Coarse) -> Coarse:
    slopes = np.stack([np.gradient(image, axis=axis) for axis in range(3)])
    return np.asarray(np.sqrt((slopes**2).sum(axis=0)))


def _alike(one: Coarse, other: Coarse, within: Mask) -> float:
    """Correlation of two images within a mask."""
    a, b = (values - values.mean() for values in (one[within], other[within]))
    return float((a * b).sum() / max(np.sqrt((a * a).sum() * (b * b).sum()), 1e-12))
