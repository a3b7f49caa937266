"""A run without its computation: how every scan would be cut, and the memory that this would take."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from brainseg_runtime.batch import Failed, Findings, ahead_of
from brainseg_runtime.errors import BrainsegError
from brainseg_runtime.memory import Beside, InHand, told_of_next
from brainseg_runtime.preprocess import place
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
    hand = InHand(segmenter.answering)
    for scan, following in zip(found.scans, [*found.scans[1:], None], strict=True):
        try:
            outline = scan.outline()
            segmenter.require_room(scan.id, outline, hand.arena)
            placement = place(scan.read(), segmenter.spec).placement
            planned = segmenter.plan(placement, beside=Beside(outline.beside, kept=hand.arena))
        except BrainsegError as error:
            hand.begin(None)
            yield Failed(scan.id, error.with_traceback(None))
            continue
        hand.begin(planned.stages)
        needed = hand.together(ahead_of(following, segmenter))
        if needed > segmenter.limit:
            hand.written()
        told = told_of_next(needed, segmenter.limit) if following is not None else {}
        yield Planned(scan.id, {**planned.record(), **told})
