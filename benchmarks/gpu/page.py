"""Turn the figures of a GPU into the tables of ``docs/gpu.md``: ``python -m benchmarks.gpu.page FILE``."""

import argparse
import json
from pathlib import Path

from benchmarks.report import table

BEGIN, END = "<!-- gpu: begin -->", "<!-- gpu: end -->"
NETWORKS = {"shipped": "the shipped network (`s2d` 24)", "full": "the full-size `s2d` (32)"}


def page(figures: dict) -> str:
    """All that was measured, in words and tables."""
    facts, rates = figures["facts"], figures["rates"]
    versions = ", ".join(
        f"{name} {facts[name]}"
        for name in facts
        if name not in ("date", "gpu", "capability", "driver", "cores", "python", "cudnn")
    )
    lines = [
        f"Measured by `python -m benchmarks.gpu` on {facts['date']}: {facts['gpu']}, driver "
        f"{facts['driver']}, {facts['cores']} cores, Python {facts['python']}, {versions}. Its best here: "
        f"{rates['fp16'] / 1e12:.0f} TFLOP/s in FP16, {rates['fp32'] / 1e12:.0f} in FP32 without TF32 "
        f"(products of 8192^2 matrices), {rates['bytes'] / 1e12:.1f} TB/s (copies, read and written).",
        "",
    ]
    for key, words in NETWORKS.items():
        if key in figures:
            lines.append(
                f"One pass of {words}, tiles and logits on the GPU. Milliseconds, and how many times as fast "
                "as PyTorch AMP within a round:"
            )
            lines += ["", *_passes(figures[key], rates)]
    lines += ["One scan, the shipped model, warm. Seconds of the stages, and milliseconds on the GPU:", ""]
    lines += _scans(figures["scans"])
    if "keras" in figures:
        lines += ["Dice with the mask of the Keras model on a CPU, and voxels that differ:", ""]
        lines += _parity(figures["keras"])
    lines += [
        "A folder of copies of the synthetic scan, file to file, FP16, several processes on the GPU:",
        "",
    ]
    lines += _folders(figures["folders"])
    return "\n".join(lines)


def _passes(shapes: dict, rates: dict) -> list[str]:
    names = list(shapes)
    forms = list(shapes[names[0]]["forms"])
    rows = [[form, *(_cell(shapes[name]["forms"][form]) for name in names)] for form in forms]
    work = ["FP16 arithmetic at the best rate", *(_ms(s["flop"] / rates["fp16"]) for s in shapes.values())]
    moved = [
        "FP16 bytes at the best rate",
        *(_ms(s["bytes"]["fp16"] / rates["bytes"]) for s in shapes.values()),
    ]
    return table(["", *names], [*rows, work, moved])


def _cell(form: dict) -> str:
    return f"{_ms(form['seconds'])} ({form['ratio']:.2f})"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.2f}"


def _scans(scans: dict) -> list[str]:
    stages, steps = ("prepare", "infer", "restore"), ("upload", "network", "download")
    rows = []
    for scan, precisions in scans.items():
        for precision, one in precisions.items():
            rest = sum(one["steps"].values()) - sum(one["steps"][step] for step in steps)
            rows.append(
                [
                    scan,
                    precision.upper(),
                    *(f"{one['seconds'][stage]:.3f}" for stage in stages),
                    *(f"{1e3 * one['steps'][step]:.1f}" for step in steps),
                    f"{1e3 * rest:.1f}",
                ]
            )
    return table(["scan", "", *stages, *steps, "our kernels"], rows)


def _parity(scans: dict) -> list[str]:
    return table(
        ["scan", "", "WT", "TC", "ET", "voxels"],
        [
            [
                scan,
                precision.upper(),
                *(f"{one[r]:.4f}" for r in ("WT", "TC", "ET")),
                str(one["voxels_apart"]),
            ]
            for scan, precisions in scans.items()
            for precision, one in sorted(precisions.items(), reverse=True)
        ],
    )


def _folders(folders: list[dict]) -> list[str]:
    stages = list(folders[0]["stages"])
    return table(
        ["processes", "scans a second", *stages, "peak MB of one"],
        [
            [
                str(one["processes"]),
                f"{one['a_second']:.1f}",
                *(f"{one['stages'][stage]:.2f}" for stage in stages),
                f"{one['peak_memory_mb']:.0f}",
            ]
            for one in folders
        ],
    )


def main() -> None:
    """Write the tables between the page's marks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("json", type=Path, nargs="?", default=Path("benchmarks/gpu/latest.json"))
    parser.add_argument("--write", type=Path, default=Path("docs/gpu.md"))
    asked = parser.parse_args()
    text = asked.write.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    tables = page(json.loads(asked.json.read_text()))
    asked.write.write_text(f"{before}{BEGIN}\n{tables}\n{END}{after}")


if __name__ == "__main__":
    main()
