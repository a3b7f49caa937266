"""Turn the JSON of ``make bench`` into the tables of the README: ``python -m benchmarks.report FILE``."""

import argparse
import json
import platform
from importlib.metadata import version
from pathlib import Path

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
PACKAGES = ("brainseg-runtime", "keras", "tensorflow-cpu", "tf2onnx", "onnxruntime", "numpy")


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines] + [""]


def report(data: dict) -> str:
    """The measurements in words and tables."""
    machine = data["machine_info"]
    extra = [entry["extra_info"] for entry in data["benchmarks"]]
    stages = next(e["stages"] for e in extra if "stages" in e)
    forms = next(e["forms"] for e in extra if "forms" in e)
    parities = [e["parity"] for e in extra if "parity" in e]
    lines = [
        f"Measured by `make bench` on {data['datetime'][:10]}: {machine['cpu']['brand_raw']}, "
        f"{machine['usable_cores']} cores, Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in PACKAGES)
        + ".",
        "",
        "One scan of 240x240x155 voxels and four modalities, file to file, full-size `s2d` in 128^3 tiles "
        "half overlapping, median seconds:",
        "",
        *table([*stages, "sum"], [[*(f"{s:.2f}" for s in stages.values()), f"{sum(stages.values()):.2f}"]]),
        "One 128^3 tile of the same weights through each form, in turn within one run:",
        "",
        *table(
            ["form", "median seconds", "times as fast as Keras"],
            [[name, f"{f['seconds']:.2f}", f"{f['times_keras']:.2f}"] for name, f in forms.items()],
        ),
        "The demo's bundle against its Keras model, on scans that neither training nor certificate saw:",
        "",
        *table(
            ["graph", "scans", "largest logit difference / max(1, logit)", "smallest Dice"],
            [
                [p["precision"], str(p["scans"]), f"{p['logits']:.1e}", f"{min(p['dice'].values()):.5f}"]
                for p in parities
            ],
        ),
    ]
    return "\n".join(lines)


def main() -> None:
    """Print the report; with ``--readme`` put it between the README's marks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("json", type=Path)
    parser.add_argument("--readme", type=Path)
    arguments = parser.parse_args()
    text = report(json.loads(arguments.json.read_text()))
    print(text)  # noqa: T201
    if arguments.readme:
        readme = arguments.readme.read_text()
        before, rest = readme.split(BEGIN)
        after = rest.split(END)[1]
        arguments.readme.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


if __name__ == "__main__":
    main()
