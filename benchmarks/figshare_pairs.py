"""Pictures of what is public of figshare 1512427 beside the data set: labels, and 65 slices with masks.

    python -m benchmarks.figshare_pairs FOLDER -o OUT

``FOLDER`` holds ``tumor_metadata.csv`` (the type of all 3064 slices), ``plots88/`` (60 slices and masks cut
out of published figures, some of them turned) and ``samples/`` (5 original masks). The slices are written as
an import of figshare would be, in nominal geometry, and drawn.
"""

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from brainseg_runtime.geometry import Geometry
from brainseg_runtime.nifti import write_image, write_labels
from brainseg_trainer.config import load
from brainseg_trainer.figshare.importing import INDEX, NOMINAL
from brainseg_trainer.figshare.task import PIXEL_MM, SLICE_MM
from brainseg_trainer.figures.gallery import draw_classes
from brainseg_trainer.figures.render import render_data
from brainseg_trainer.sources import open_data
from PIL import Image


def pairs(folder: Path) -> dict[int, tuple[str, np.ndarray, np.ndarray]]:
    """Number of a slice -> type, image and mask (rows, columns)."""
    kinds = _kinds(folder)
    found = {}
    for entry in json.loads((folder / "plots88" / "index.json").read_bytes()):
        number = int(entry["index"])
        image, mask = (
            np.array(Image.open(folder / "plots88" / f"{number:04d}_{what}.png").convert("L"))
            for what in ("image", "mask")
        )
        found[number] = (kinds[number], image, mask > 0)
    for path in sorted((folder / "samples").glob("*_mask.png")):
        number = int(path.name.split("_")[0])
        mask = np.array(Image.open(path).convert("L")) > 0
        picture = Image.open(path.with_name(f"{number}_mri.png")).convert("L").resize(mask.shape[::-1])
        found[number] = (kinds[number], np.array(picture), mask)
    return found


def write_scans(found: dict[int, tuple[str, np.ndarray, np.ndarray]], out: Path) -> None:
    """Write the pairs as scans of one slice each, and the index of an import."""
    scans = {}
    for number, (kind, image, mask) in found.items():
        # Neither patients nor folds are known, so each slice stands for itself.
        name = f"slice_{number:04d}"
        pixel = PIXEL_MM * 512 / max(image.shape)
        affine = np.diag([-pixel, -pixel, SLICE_MM, 1.0])
        geometry = Geometry((image.shape[1], image.shape[0], 1), affine)
        write_image(out / name / f"{name}_t1c.nii.gz", image.T[..., None].astype(np.int16), geometry)
        write_labels(out / name / f"{name}_seg.nii.gz", mask.T[..., None].astype(np.uint8), geometry)
        scans[name] = {"patient": name, "type": kind, "fold": None, "plane": "unknown", "slices": [number]}
    (out / INDEX).write_text(json.dumps({"format": 1, "geometry": NOMINAL, "scans": scans}))


def _kinds(folder: Path) -> dict[int, str]:
    with (folder / "tumor_metadata.csv").open(newline="") as file:
        return {
            int(row["file"].removesuffix(".mat").removesuffix(".png")): row["label_name"]
            for row in csv.DictReader(file)
        }


def main(
    folder: Annotated[Path, typer.Argument(help="The folder of what is public.")],
    out: Annotated[Path, typer.Option("-o", help="Where to write scans and pictures.")],
) -> None:
    """Write the pairs as scans, and draw them and the types of all slices."""
    write_scans(pairs(folder), out / "scans")
    data = open_data(out / "scans", load("figshare"))
    made = render_data(data, out / "figures", lambda text: typer.echo(text, err=True))
    counts = Counter(_kinds(folder).values())
    draw_classes({"slices of figshare 1512427": dict(sorted(counts.items()))}, out / "figures" / "all.png")
    for path in [*made, out / "figures" / "all.png"]:
        typer.echo(path)
    typer.echo(json.dumps(dict(sorted(counts.items()))))


if __name__ == "__main__":
    typer.run(main)
