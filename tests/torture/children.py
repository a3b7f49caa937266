"""Trials in a process of their own, so that one that dies or hangs is counted and not felt."""

import importlib
import os
import selectors
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from brainseg_runtime.errors import BrainsegError

from torture.rows import Row

__all__ = ["HANG_SECONDS", "by_code", "ends", "in_words", "survey"]

HANG_SECONDS = 10
ROOT = Path(__file__).parents[1]


def by_code(
    what: str, trials: Iterable[tuple[str, Callable[[], object]]], within: float = HANG_SECONDS
) -> Row:
    """Whether each of some trials, given with the code that it has to end in, ends in it and soon.

    ``within`` in seconds, for the slowest.
    """
    tried, right, slowest = 0, 0, 0.0
    for code, trial in trials:
        started = time.perf_counter()
        try:
            trial()
        except BrainsegError as error:
            right += error.code == code
        slowest = max(slowest, time.perf_counter() - started)
        tried += 1
    found = f"{right} with their code, slowest {slowest:.2f} s"
    return Row(what, str(tried), found, right == tried and slowest < within)


def survey(maker: str, first: int, last: int, *arguments: object) -> Counter[str]:
    """What became of the trials ``first`` to ``last``, by their words, "hang" and "crash" included.

    ``maker`` is "module:function"; called with the arguments as text, it gives the function of one trial.
    """
    found: Counter[str] = Counter()
    while first < last:
        command = [sys.executable, "-m", "torture.children", maker, str(first), str(last)]
        with subprocess.Popen(
            [*command, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
        ) as child:
            at, end = _listen(child, found)
            if end:
                found[end] += 1
                child.kill()
            first = max(at, first) + bool(end)
    return found


def in_words(found: Counter[str], kind: str) -> str:
    """What became of the trials of one kind."""
    words = [f"{found[f'{kind} {word}']} {word}" for word in ("refused", "same", "different")]
    return ", ".join(words) + (f", **{odd} unexpected**" if (odd := found[f"{kind} unexpected"]) else "")


def ends(found: Counter[str], what: str, count: int, reader: str) -> Row:
    """How many processes died or hung over some trials."""
    bad = found["crash"] + found["hang"]
    words = f"{found['crash']} crashes, {found['hang']} hangs"
    return Row(what, f"{count:,}", words, not bad if reader == "brainseg" else None)


def _listen(child: "subprocess.Popen[bytes]", found: Counter[str]) -> tuple[int, str]:
    """Count what a child says until it ends; the trial that it was at, and how it ended if not well."""
    assert child.stdout is not None
    at, heard, patience = -1, b"", 6 * HANG_SECONDS  # the first trial waits for imports
    with selectors.DefaultSelector() as waiting:
        waiting.register(child.stdout, selectors.EVENT_READ)
        while waiting.select(patience):
            if not (piece := os.read(child.stdout.fileno(), 1 << 16)):
                return at, "crash"
            *lines, heard = (heard + piece).split(b"\n")
            for line in lines:
                number, word = line.decode().split(maxsplit=1)
                at, patience = int(number), HANG_SECONDS
                if word == "end":
                    return at, ""
                if word != "begun":
                    found[word] += 1
    return at, "hang"


def _main() -> None:
    module, function = sys.argv[1].split(":")
    first, last = int(sys.argv[2]), int(sys.argv[3])
    # What libraries print must not be taken for an answer.
    answers = os.dup(1)
    os.dup2(2, 1)
    trial = getattr(importlib.import_module(module), function)(*sys.argv[4:])
    for n in range(first, last):
        os.write(answers, f"{n} begun\n".encode())
        os.write(answers, f"{n} {trial(n)}\n".encode())
    os.write(answers, f"{last} end\n".encode())


if __name__ == "__main__":
    _main()
