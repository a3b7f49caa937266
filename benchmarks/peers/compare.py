"""Ours and the peers on one scan, in turn within one run; README.md says how to start it.

Each runs in a process of its own that is started, warmed up and then asked for one scan at a time.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median

from benchmarks.report import table
from benchmarks.work import gemm_peak

HERE = Path(__file__).parent
FORMS = ("openvino", "ort", "tf2onnx", "keras")
"""Of the first bundle; of the others the first."""
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
    parser.add_argument("--json", type=Path, default=Path("benchmarks/peers/latest.json"))
    parser.add_argument("--write", type=Path, default=Path("docs/peers.md"))
    asked = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    load, peaks = os.getloadavg(), {**gemm_peak(threads), "MKL (PyTorch)": _mkl(asked.python, threads)}
    weights = Path(asked.bundle[0]).parent / "weights.npz"
    with tempfile.TemporaryDirectory() as out:
        workers = {}
        for n, bundle in enumerate(asked.bundle):
            for form in FORMS if n == 0 else FORMS[:1]:
                name = f"brainseg, {Path(bundle).name}, {form}"
                options = [form, str(asked.scan), bundle, str(threads), str(_folder(out, name))]
                workers[name] = Worker([sys.executable, str(HERE / "ours.py"), *options])
        for name in asked.peers:
            options = [name, str(asked.scan), str(threads), str(_folder(out, name)), str(weights)]
            workers[name] = Worker([asked.python, "-m", "benchmarks.peers.peer", *options])
        every = [{name: worker.once() for name, worker in workers.items()} for _ in range(asked.rounds + 1)]
        for worker in workers.values():
            worker.stop()
    found = {"load": load, "gemm": peaks, "rounds": every[1:]}
    asked.json.write_text(json.dumps(found, indent=1))
    asked.write.write_text(page(found, asked.python))


def _folder(out: str, name: str) -> Path:
    """Where one of them writes its mask."""
    folder = Path(out, name.replace(", ", "-"))
    folder.mkdir(exist_ok=True)
    return folder


def _mkl(python: str, threads: int) -> float:
    """The best of some products of 2048^2 matrices in the peers' PyTorch, in GFLOP/s."""
    code = f"""
import time, torch
torch.set_num_threads({threads})
a, b, best = torch.randn(2048, 2048), torch.randn(2048, 2048), 1e9
for _ in range(6):
    started = time.perf_counter()
    a @ b
    best = min(best, time.perf_counter() - started)
print(2 * 2048**3 / best / 1e9)
"""
    return float(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout)


def page(found: dict, python: str) -> str:
    """All contestants as a table in Markdown, the first of them the measure."""
    rounds = found["rounds"]
    code = "import torch, monai; print(f'torch {torch.__version__}, MONAI {monai.__version__}')"
    peers = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    names = list(rounds[0])
    measures = [name for name in names if name.endswith("openvino")]
    head = ["", *(f"times {name}" for name in measures), *SECONDS, "peak MB"]
    rows = []
    for name in names:
        ratios = [f"{median(r[name]['total'] / r[own]['total'] for r in rounds):.1f}" for own in measures]
        seconds = [f"{median(r[name][stage] for r in rounds):.2f}" for stage in SECONDS]
        rows.append([name, *ratios, *seconds, f"{max(r[name]['peak_mb'] for r in rounds):.0f}"])
    best = ", ".join(f"{name} {value:.0f}" for name, value in found["gemm"].items())
    lines = "\n".join(table(head, rows))
    return f"""# Peers

Written by `python -m benchmarks.peers.compare` (benchmarks/peers/README.md) on {date.today()}:
{platform.machine()}, {len(os.sched_getaffinity(0))} cores, OpenVINO {version("openvino")}, {peers};
{len(rounds)} rounds, in turn. Seconds of one scan of four modalities, `.nii.gz` files to `.nii.gz` file,
in a warm process: medians; ratios are medians of those within a round. The load before was
{found["load"][0]:.1f}, the best product of 2048^2 matrices in FP32, in GFLOP/s: {best}.

The weights of the other peers are random, which does not change how long they take; nothing here speaks
of quality. `torch-s2d` has those of the first bundle, and does not start unless its logits are ours. The
networks differ, and so do their grids: `benchmarks/peers/README.md` says what each is.

{lines}"""


if __name__ == "__main__":
    main()
