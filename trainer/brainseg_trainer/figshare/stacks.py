"""Which slices of a patient lie one upon the other.

The files say neither plane nor position. What they show is that slices of one patient have numbers in a
row, and that neighbours in one plane look alike: a stack is a run of numbers that no leap interrupts.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from brainseg_runtime.errors import UsageRefused
from numpy.typing import NDArray

from brainseg_trainer.figshare.slices import Slice

__all__ = ["Look", "Stack", "likeness", "look_at", "read_planes", "stacks"]

THUMB = 64
"""Pixels along the side of the small picture that slices are compared by."""
LEAST_LIKENESS = 0.75
"""Correlation of neighbours 7 mm apart: 0.81 and more within a plane of heads with their skull, up to
0.79, mostly below 0.65, between planes; 0.91 to 0.93 within and 0.49 between the stacks of slices 995 to
999."""


@dataclass(frozen=True, eq=False)
class Look:
    """What is remembered of a slice to find its neighbours."""

    number: int
    patient: str
    kind: int
    side: int
    """Rows, which are as many as columns."""
    thumb: NDArray[np.float32]
    """(64, 64): the image, made small."""
    tumour: NDArray[np.bool_]
    """(64, 64): where the tumour is."""
    sha256: str


@dataclass(frozen=True)
class Stack:
    """Slices of one patient in the order of their numbers, which is taken for their order in space."""

    patient: str
    kind: int
    side: int
    numbers: tuple[int, ...]
    plane: str
    """What the user says it is; else ``"unknown"``."""

    @property
    def name(self) -> str:
        """The scan's id."""
        return f"{_safe(self.patient)}_{self.numbers[0]:04d}-{self.numbers[-1]:04d}"

    @property
    def folder(self) -> str:
        """The patient's folder."""
        return _safe(self.patient)


def look_at(found: Slice) -> Look:
    """Make a slice small: means of squares of the image, and of those with tumour."""
    side = found.image.shape[0] // THUMB
    squares = (THUMB, side, THUMB, side)
    return Look(
        number=found.number,
        patient=found.patient,
        kind=found.kind,
        side=found.image.shape[0],
        thumb=found.image.reshape(squares).mean(axis=(1, 3), dtype=np.float32),
        tumour=found.mask.reshape(squares).max(axis=(1, 3)),
        sha256=found.sha256,
    )


def stacks(looks: Sequence[Look], planes: Mapping[int, str]) -> list[Stack]:
    """Sort slices into stacks; ``planes`` is what the user knows: number -> plane."""
    runs: list[list[Look]] = []
    for look in sorted(looks, key=lambda look: look.number):
        if runs and _are_neighbours(runs[-1][-1], look, planes):
            runs[-1].append(look)
        else:
            runs.append([look])
    return [_stack(run, planes) for run in runs]


def read_planes(path: Path) -> dict[int, str]:
    """Number -> plane, from a CSV with the columns ``number`` and ``plane``.

    Raises:
        UsageRefused: ``E_USAGE``.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return {int(row["number"]): row["plane"].strip() for row in csv.DictReader(file)}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UsageRefused(
            "E_USAGE",
            f"{path} is no table of planes: {type(error).__name__}: {error}.",
            "Give a CSV with the columns number and plane.",
        ) from error


def likeness(one: Look, other: Look) -> float:
    """Correlation of two slices' small pictures."""
    return float(np.corrcoef(one.thumb.ravel(), other.thumb.ravel())[0, 1])


def _are_neighbours(one: Look, other: Look, planes: Mapping[int, str]) -> bool:
    same = (one.patient, one.kind, one.side) == (other.patient, other.kind, other.side)
    if other.number != one.number + 1 or not same:
        return False
    if one.number in planes and other.number in planes:
        return planes[one.number] == planes[other.number]
    return likeness(one, other) >= LEAST_LIKENESS and bool((one.tumour & other.tumour).any())


def _stack(run: Sequence[Look], planes: Mapping[int, str]) -> Stack:
    named = {planes[look.number] for look in run if look.number in planes}
    first = run[0]
    return Stack(
        patient=first.patient,
        kind=first.kind,
        side=first.side,
        numbers=tuple(look.number for look in run),
        plane=named.pop() if len(named) == 1 else "unknown",
    )


def _safe(patient: str) -> str:
    """A patient's id as a file's name: what is no letter, digit or hyphen becomes its code."""
    return "".join(c if c.isascii() and (c.isalnum() or c == "-") else f"x{ord(c):02x}" for c in patient)
