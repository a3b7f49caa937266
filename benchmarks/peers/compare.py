"""Ours and the peers on one scan, in turn within one run; README.md says how to start it.

Each runs in a process of its own that is started, warmed up and then asked for one scan at a time.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

HERE = Path(__file__).parent
PEERS = ("monai-bundle", "torch-s2d", "monai-128", "nnunet-plain")


class Worker:
    """A process that segments the scan whenever it is asked to, and says what that took."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def once(self) -> dict[str, float]:
        """Seconds of reading, computing and writing, and the peak memory in MB so far."""
        print("go", file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def stop(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def main() -> None:
    """Print seconds, ratios within each round, and memory, as a table; keep all figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scan", type=Path)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--python", required=True, help="the peers' interpreter")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", nargs="*", default=PEERS, choices=PEERS)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/peers-latest.json"))
    asked = parser.parse_args()
    threads = str(len(os.sched_getaffinity(0)))
    ours = [sys.executable, str(HERE / "ours.py"), str(asked.scan), asked.bundle, threads]
    workers = {"brainseg": Worker(ours)}
    for name in asked.peers:
        workers[name] = Worker([asked.python, str(HERE / "peer.py"), name, str(asked.scan), threads])
    rounds = [{name: worker.once() for name, worker in workers.items()} for _ in range(asked.rounds + 1)][1:]
    for worker in workers.values():
        worker.stop()
    asked.json.write_text(json.dumps({"load": os.getloadavg(), "rounds": rounds}, indent=1))
    for name in workers:
        ratio = median(r[name]["total"] / r["brainseg"]["total"] for r in rounds)
        stages = {key: round(median(r[name][key] for r in rounds), 2) for key in rounds[0][name]}
        print(f"{name:14} {ratio:7.1f} x  {stages}")  # noqa: T201


if __name__ == "__main__":
    main()
