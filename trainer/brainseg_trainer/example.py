"""A scan as training keeps it: on the network's grid, on disk, read part by part as it is asked for."""

from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

__all__ = ["Example", "OnDisk"]


class OnDisk(Protocol):
    """An array of which parts are read as they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its axes."""

    def __getitem__(self, part: tuple[slice, ...] | int, /) -> NDArray[Any]:
        """A part of it, in memory."""


@dataclass(frozen=True, eq=False)
class Example:
    """A scan as training keeps it: on the network's grid, on disk."""

    scan: str
    data: OnDisk
    """(i, j, k, C) float32."""
    labels: OnDisk
    """(i, j, k) uint8."""
    tumour: OnDisk
    """(n, 3) integers: voxels of tumour to centre tiles on, as many of each label as of any other."""
    kind: str = ""
    """Type of tumour, where the data say it."""
