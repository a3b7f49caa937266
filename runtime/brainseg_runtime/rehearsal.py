"""A run without its computation: how every scan would be cut, and the memory that this would take."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from brainseg_runtime.batch import Failed, Findings
from brainseg_runtime.errors import BrainsegError
from brainseg_runtime.preprocess import examine
from brainseg_runtime.segmenter import Segmenter

__all__ = ["Planned", "rehearse"]


@dataclass(frozen=True)
class Planned:
    """A scan that can be computed, and how."""

    scan: str
    plan: Mapping[str, Any]


def rehearse(segmenter: Segmenter, found: Findings) -> Iterator[Planned | Failed]:
    """Read and place every scan, since only its voxels tell where the head is; write nothing."""
    yield from (Failed(scan, error) for scan, error in found.refused.items())
    for scan in found.scans:
        try:
            placement = examine(scan.read(), segmenter.spec).placement
            yield Planned(scan.id, segmenter.plan(placement).record())
        except BrainsegError as error:
            yield Failed(scan.id, error)
