"""Images and labellings that never travel without their grid."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainseg_runtime.geometry import Geometry

__all__ = ["Outline", "Segmentation", "Source", "Volume"]


@dataclass(frozen=True)
class Source:
    """The file that one modality was read from."""

    modality: str
    file: str
    """The file's name, without its folder."""
    sha256: str
    """Of the bytes on disk."""


@dataclass(frozen=True)
class Outline:
    """What is known of a scan's size before any of its voxels is read."""

    geometry: Geometry
    """The reference modality's grid."""
    beside: int
    """Bytes that lie beside the volume while it is read: the voxels as stored, and copies on their way."""


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan in memory: every modality on one grid."""

    data: NDArray[np.float32]
    """(I, J, K, C), C in the spec's modality order; the scanner's own units."""
    geometry: Geometry
    """The reference modality's grid."""
    scan: str = "scan"
    sources: tuple[Source, ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict)
    """How it came about, as far as the scan's JSON tells: which grid, what was resampled."""
    absent: tuple[str, ...] = ()
    """Modalities that were not given; their channels are 0."""

    def __post_init__(self) -> None:
        if self.data.ndim != 4 or self.data.shape[:3] != self.geometry.shape:
            raise ValueError(
                f"a volume is (I, J, K, C) on a grid of {self.geometry.shape}. Received: {self.data.shape}"
            )
        if self.data.dtype != np.float32:
            raise ValueError(f"a volume is float32. Received: {self.data.dtype}")


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A label for every voxel of a scan's grid."""

    labels: NDArray[np.uint8]
    """(I, J, K), values as in ``names``; 0 is background."""
    geometry: Geometry
    names: Mapping[int, str]
    """Label value -> name, such as ``{1: "NCR", 2: "ED", 3: "ET"}``."""
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Region name -> the label values that it is made of, such as ``{"TC": (1, 3)}``."""
    scan: str = "scan"
    record: Mapping[str, Any] = field(default_factory=dict)
    """What ran, on what, for how long: everything that the scan's JSON says beside the volumes."""
    probabilities: NDArray[np.uint8] | None = field(default=None, repr=False)
    """(I, J, K, R): the probability of every region, in the order of ``regions``, 0..255 for 0..1."""

    def __post_init__(self) -> None:
        if self.labels.shape != self.geometry.shape or self.labels.dtype != np.uint8:
            raise ValueError(
                f"labels are uint8 on a grid of {self.geometry.shape}. "
                f"Received: {self.labels.dtype} {self.labels.shape}"
            )

    def mask(self, region: str) -> NDArray[np.bool_]:
        """The voxels of a region, (I, J, K)."""
        return np.isin(self.labels, self.regions[region])

    def volumes_ml(self) -> dict[str, float]:
        """Volume of every region, in ml."""
        # One comparison a label is many times faster than a bincount, which widens every voxel first.
        held = {value for values in self.regions.values() for value in values}
        counts = {value: np.count_nonzero(self.labels == value) for value in held}
        return {
            region: sum(counts[value] for value in values) * self.geometry.voxel_volume / 1000.0
            for region, values in self.regions.items()
        }
