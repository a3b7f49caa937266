"""Masks that a GPU made, held against those of the Keras model."""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from brainseg_export.model import keras_engine, load, to_logits
from brainseg_runtime import Bundle, Segmenter, find_scans, read

from benchmarks.brain import write_scan
from benchmarks.gpu.scans import PRECISIONS, region_dice


def main() -> None:
    """Segment each scan by Keras on this CPU, and write Dice per region into the figures of the GPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("scans", type=Path, nargs="+", help="the real ones that the GPU had")
    parser.add_argument(
        "--keras", type=Path, required=True, help="the .keras file that the bundle was made of"
    )
    parser.add_argument("--masks", type=Path, required=True, help="what python -m benchmarks.gpu kept")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/gpu/latest.json"))
    asked = parser.parse_args()
    spec = Bundle.open(asked.bundle).spec
    segmenter = Segmenter(spec, keras_engine(to_logits(load(asked.keras), spec)))
    figures = json.loads(asked.json.read_text())
    found: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as room:
        write_scan(Path(room, "synthetic"))
        for scan in find_scans([*asked.scans, Path(room)], spec).scans:
            expected = segmenter.segment(read(scan))
            for precision in PRECISIONS:
                mask = np.load(asked.masks / f"{scan.id}-{precision}.npz")["labels"]
                apart = int((mask != expected.labels).sum())
                scores = {**region_dice(mask, expected), "voxels_apart": apart}
                found.setdefault(scan.id, {})[precision] = scores
    asked.json.write_text(json.dumps({**figures, "keras": found}, indent=1))


if __name__ == "__main__":
    main()
