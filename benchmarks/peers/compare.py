"""Ours and the peers on one scan, in turn within one run; README.md says how to start it.

Each runs in a process of its own that is started, warmed up and then asked for one scan at a time.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median

HERE = Path(__file__).parent
PEERS = ("monai-bundle", "torch-s2d", "monai-128", "nnunet-plain")
SECONDS = ("read", "compute", "write", "total")


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
    """Write seconds, ratios within each round, and memory, as a page; keep all figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scan", type=Path)
    parser.add_argument("--bundle", required=True, nargs="+", help="ours; ratios are to the first")
    parser.add_argument("--python", required=True, help="the peers' interpreter")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", nargs="*", default=PEERS, choices=PEERS)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/peers-latest.json"))
    parser.add_argument("--write", type=Path, default=Path("docs/peers.md"))
    asked = parser.parse_args()
    threads = str(len(os.sched_getaffinity(0)))
    workers = {}
    for bundle in asked.bundle:
        ours = [sys.executable, str(HERE / "ours.py"), str(asked.scan), bundle, threads]
        workers[f"brainseg, {Path(bundle).name}"] = Worker(ours)
    for name in asked.peers:
        workers[name] = Worker([asked.python, str(HERE / "peer.py"), name, str(asked.scan), threads])
    rounds = [{name: worker.once() for name, worker in workers.items()} for _ in range(asked.rounds + 1)][1:]
    for worker in workers.values():
        worker.stop()
    asked.json.write_text(json.dumps({"load": os.getloadavg(), "rounds": rounds}, indent=1))
    asked.write.write_text(page(rounds, asked.python))


def page(rounds: list[dict[str, dict[str, float]]], python: str) -> str:
    """All contestants as a table in Markdown, the first of them the measure."""
    code = "import torch, monai; print(f'torch {torch.__version__}, MONAI {monai.__version__}')"
    peers = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    names = list(rounds[0])
    head = ["", *(f"times {name}" for name in names if name.startswith("brainseg")), *SECONDS, "peak MB"]
    rows = [head, ["---"] * len(head)]
    for name in names:
        ratios = [
            f"{median(r[name]['total'] / r[own]['total'] for r in rounds):.1f}"
            for own in names
            if own.startswith("brainseg")
        ]
        seconds = [f"{median(r[name][stage] for r in rounds):.2f}" for stage in SECONDS]
        rows.append([name, *ratios, *seconds, f"{max(r[name]['peak_mb'] for r in rounds):.0f}"])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"""# Peers

Written by `python -m benchmarks.peers.compare` (benchmarks/peers/README.md) on {date.today()}:
{platform.machine()}, {len(os.sched_getaffinity(0))} cores, OpenVINO {version("openvino")}, {peers};
{len(rounds)} rounds, in turn. Seconds of one scan of four modalities, `.nii.gz` files to `.nii.gz` file, in a
warm process: medians; ratios are medians of those within a round. The weights of the peers and of `full` are
random, which does not
change how long they take; nothing here speaks of quality. The networks differ, and so do their grids:
`benchmarks/peers/README.md` says what each is.

{table}
"""


if __name__ == "__main__":
    main()
