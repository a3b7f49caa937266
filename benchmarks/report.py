"""Turn the JSON of ``make bench`` into the tables of the README: ``python -m benchmarks.report FILE``."""

import argparse
import json
from pathlib import Path

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
PACKAGES = ("brainseg-runtime", "keras", "tensorflow-cpu", "tf2onnx", "onnxruntime", "openvino", "numpy")


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines] + [""]


def report(data: dict) -> str:
    """The measurements in words and tables; what was not measured is left out."""
    machine = data["machine_info"]
    found: dict[str, list] = {}
    for entry in data["benchmarks"]:
        for name, value in entry["extra_info"].items():
            found.setdefault(name, []).append(value)
    lines = [
        f"Measured by `make bench` on {data['datetime'][:10]}: {machine['cpu']['brand_raw']}, "
        f"{machine['usable_cores']} cores, Python {machine['python']}, "
        + ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
        + ".",
        "",
    ]
    for name, section in SECTIONS.items():
        if name in found:
            lines += section(found[name])
    return "\n".join(lines)


def _stages(found: list[dict]) -> list[str]:
    (engines,) = found
    stages = next(iter(engines.values()))
    return [
        "One scan of 240x240x155 voxels and four modalities, file to file, full-size `s2d`, the whole "
        "head in one pass, a warm process, median seconds:",
        "",
        *table(
            ["engine", *stages, "sum"],
            [
                [n, *(f"{s[stage]:.2f}" for stage in stages), f"{sum(s.values()):.2f}"]
                for n, s in engines.items()
            ],
        ),
    ]


def _forms(found: list[dict]) -> list[str]:
    (forms,) = found
    return [
        "One 128^3 tile of the same weights through each form, in turn within one run:",
        "",
        *table(
            ["form", "median seconds", "times as fast as Keras"],
            [[name, f"{f['seconds']:.2f}", f"{f['ratio']:.2f}"] for name, f in forms.items()],
        ),
    ]


def _schemes(found: list[dict]) -> list[str]:
    (schemes,) = found
    return [
        f"The network's time on a head of {'x'.join(map(str, schemes['grid']))} voxels; tiles are "
        f"{schemes['passes']} of 128^3, half overlapping:",
        "",
        *table(
            ["scheme", "median seconds", "times as fast as one pass"],
            [[name, f"{f['seconds']:.2f}", f"{f['ratio']:.2f}"] for name, f in schemes["forms"].items()],
        ),
    ]


def _gemm(found: list[dict]) -> list[str]:
    (gemm,) = found
    best = max(gemm["peaks"].values())
    peaks = ", ".join(f"{name} {value:.0f}" for name, value in gemm["peaks"].items())
    return [
        f"One pass over 160x192x160 voxels is {gemm['gflop']:.0f} GFLOP: {gemm['network']:.0f} GFLOP/s in "
        f"OpenVINO, {gemm['network'] / best:.0%} of the best large matrix product on "
        f"{gemm['threads']} threads ({peaks}). Where the time goes, "
        "as OpenVINO counts it:",
        "",
        *table(
            ["part", "seconds", "GFLOP/s"],
            [
                [part, f"{one['seconds']:.2f}", f"{one['gflops']:.0f}" if one["gflops"] else ""]
                for part, one in gemm["parts"].items()
            ],
        ),
        "",
    ]


def _folder(found: list[dict]) -> list[str]:
    (folder,) = found
    first, last = folder["resident_mb"]
    return [
        f"A folder of {folder['scans']} scans: {folder['seconds_a_scan']:.2f} s a scan, "
        f"{folder['times_the_floor']:.2f} times the larger of the slowest stage "
        f"({folder['slowest_stage']:.2f} s) and half the core-seconds ({folder['half_core_seconds']:.2f} s). "
        f"Resident memory, Keras and all: {first:.0f} MB after scan 2, {last:.0f} MB after the last.",
        "",
    ]


def draw_costs(data: dict, path: Path) -> None:
    """Seconds against voxels, tiles and scans, as one picture, where all three were measured."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    found = {name: value for entry in data["benchmarks"] for name, value in entry["extra_info"].items()}
    if not {"size", "tile", "folder"} <= set(found):
        return
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for engine, sides in found["size"].items():
        left.plot([int(s) ** 3 / 1e6 for s in sides], list(sides.values()), marker="o", label=engine)
    left.set(title="One pass of s2d over a cube", xlabel="million voxels", ylabel="seconds")
    left.legend()
    tiles = found["tile"]
    middle.bar(
        [f"{name}^3" if name.isdigit() else name for name in tiles], [t["seconds"] for t in tiles.values()]
    )
    middle.set(title="A head of 160x192x160 voxels", xlabel="tiles, half overlapping", ylabel="seconds")
    counts = found["folder"]["by_count"]
    right.plot([int(n) for n in counts], list(counts.values()), marker="o")
    right.set(title="Scans of 240x240x155, file to file", xlabel="scans", ylabel="seconds")
    for axes in (left, right):
        axes.set(xlim=(0, None), ylim=(0, None))
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=90)


def _dicom(found: list[dict]) -> list[str]:
    (dicom,) = found
    i, j, k, c = dicom["shape"]
    return [
        f"A DICOM study of {c} series of {i}x{j}x{k} voxels, chosen and read: {dicom['seconds']:.2f} s, "
        f"{dicom['peak_memory_mb']:.0f} MB at the peak.",
        "",
    ]


def _cold(found: list[dict]) -> list[str]:
    return [
        "From the shell to the first mask of the demo's bundle: "
        + ", ".join(
            f"{cold['first_mask']:.2f} s and {cold['peak_memory_mb']:.0f} MB with {cold['engine']}"
            for cold in found
        )
        + f"; `brainseg-infer --help` {min(cold['help'] for cold in found):.2f} s.",
        "",
    ]


def _parity(found: list[dict]) -> list[str]:
    return [
        "The demo's bundle against its Keras model, on scans that neither training nor certificate saw:",
        "",
        *table(
            ["form", "scans", "largest logit difference / max(1, logit)", "smallest Dice"],
            [
                [p["form"], str(p["scans"]), f"{p['logits']:.1e}", f"{min(p['dice'].values()):.5f}"]
                for p in found
            ],
        ),
    ]


def _whole(found: list[dict]) -> list[str]:
    (measured,) = found
    regions = measured["dice"]
    return [
        "The demo's network in one pass and in half-overlapping tiles, on unseen synthetic scans: logits "
        f"differ by {measured['logits'][0]:.2f} in the mean over the brain's box, "
        f"{measured['logits'][1]:.0f} at most. Mean Dice:",
        "",
        *table(
            ["region", "one pass, truth", "tiles, truth", "one pass, tiles"],
            [[name, *(f"{value:.4f}" for value in values)] for name, values in regions.items()],
        ),
    ]


SECTIONS = {
    "stages": _stages,
    "forms": _forms,
    "schemes": _schemes,
    "gemm": _gemm,
    "folder": _folder,
    "dicom": _dicom,
    "cold": _cold,
    "parity": _parity,
    "whole": _whole,
}


def main() -> None:
    """Print the report; with ``--readme`` put it between the README's marks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("json", type=Path)
    parser.add_argument("--readme", type=Path)
    arguments = parser.parse_args()
    text = report(json.loads(arguments.json.read_text()))
    print(text)  # noqa: T201
    if arguments.readme:
        draw_costs(json.loads(arguments.json.read_text()), arguments.readme.parent / "docs" / "cost.png")
        readme = arguments.readme.read_text()
        before, rest = readme.split(BEGIN)
        after = rest.split(END)[1]
        arguments.readme.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


if __name__ == "__main__":
    main()
