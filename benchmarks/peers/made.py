"""What the comparison runs on: a bundle ``full`` of the full-size ``s2d``, and a scan of BraTS' size.

The network is trained for a minute, so that its mask is a lesion rather than noise, whose many specks would
take time of their own. The same weights go to the peer in PyTorch; tf2onnx's graph lies beside the bundle.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from brainseg_export.model import load, to_logits
from brainseg_export.witness import convert
from brainseg_runtime.bundle import Bundle
from onnx.numpy_helper import to_array

from benchmarks.brain import write_scan

RECIPE = """
base = "glioma"
name = "full"
[data]
tile = [64, 64, 64]
[training]
steps = 80
batch = 2
learning_rate = 1e-3
warmup = 5
validate_every = 80
"""

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
    spec = Bundle.open(out / "full").spec
    graph = convert(to_logits(load(run / "model.keras"), spec), spec)
    (out / "tf2onnx.onnx").write_bytes(graph.SerializeToString())


def weights(graph: Path, file: Path) -> None:
    """Kernel and bias of every convolution of a clean graph, in the order in which they are computed.

    And an image with its logits, by which whoever takes them can tell that they are in place.
    """
    model = onnx.load(graph)
    known = {tensor.name: to_array(tensor) for tensor in model.graph.initializer}
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose")]
    parts = {f"{word}{n}": known[node.input[i]] for n, node in enumerate(layers) for i, word in WORDS.items()}
    image = np.random.default_rng(0).normal(size=(1, 4, 32, 32, 32)).astype(np.float32)
    session = onnxruntime.InferenceSession(graph)
    (logits,) = session.run(None, {session.get_inputs()[0].name: image})
    np.savez(file, image=image, logits=logits, **parts)


if __name__ == "__main__":
    main()
