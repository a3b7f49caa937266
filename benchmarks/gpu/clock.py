"""Seconds on the host's clock, from before a work is asked for until the GPU has done it."""

import time
from collections.abc import Callable, Mapping
from statistics import median

__all__ = ["in_turn", "seconds"]

Work = Callable[[], object]


def seconds(work: Work, wait: Work, rounds: int = 10, warm: int = 3) -> list[float]:
    """Of each round, after some that are not counted."""
    return [_once(work, wait) for _ in range(warm + rounds)][warm:]


def in_turn(
    works: Mapping[str, Work], wait: Work, reference: str, rounds: int = 10, warm: int = 3
) -> dict[str, dict[str, float]]:
    """Median seconds of each work, and how many times as fast as the reference it is, within a round."""
    every = [{name: _once(work, wait) for name, work in works.items()} for _ in range(warm + rounds)][warm:]
    return {
        name: {
            "seconds": median(one[name] for one in every),
            "ratio": median(one[reference] / one[name] for one in every),
        }
        for name in works
    }


def _once(work: Work, wait: Work) -> float:
    started = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - started
