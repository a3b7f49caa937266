"""What the comparison runs on: a bundle ``full`` of the full-size ``s2d``, and a scan of BraTS' size.

The network is trained for one step: speed does not depend on weights. Its masks are noise, which takes us a
little longer to write than a lesion would.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx.numpy_helper import to_array

from benchmarks.brain import write_scan

RECIPE = 'base = "glioma"\nname = "full"\n[training]\nsteps = 1\nvalidate_every = 1\nwarmup = 0\nema = 0.0\n'

WORDS = {1: "kernel", 2: "bias"}
"""What a convolution's inputs are, beside the image."""


def main() -> None:
    """Arguments: where to write ``full/`` (a bundle) and ``scan/``; a data set to take a step on."""
    out, data = map(Path, sys.argv[1:])
    out.mkdir(parents=True, exist_ok=True)
    write_scan(out / "scan")
    (out / "full.toml").write_text(RECIPE)
    run, program = out / "run", Path(sys.executable)
    fit = [program.with_name("brainseg-train"), "fit", data, "--run", run, "--config", out / "full.toml"]
    subprocess.run([str(part) for part in fit], check=True)
    export = [program.with_name("brainseg-export"), "bundle", run, "-o", out / "full"]
    subprocess.run([str(part) for part in export], check=True)
    weights(out / "full" / "model.onnx", out / "weights.npz")


def weights(graph: Path, file: Path) -> None:
    """Kernel and bias of every convolution of a clean graph, in the order in which they are computed."""
    model = onnx.load(graph)
    known = {tensor.name: to_array(tensor) for tensor in model.graph.initializer}
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose")]
    parts = {f"{word}{n}": known[node.input[i]] for n, node in enumerate(layers) for i, word in WORDS.items()}
    np.savez(file, **parts)


if __name__ == "__main__":
    main()
