"""Crops of real lesions (BraTS 2020): what training learns from them beyond their four intensities.

The baseline is a quadratic discriminant, a Gaussian of four intensities per label fitted on the same crops.
Both are scored once on crops of patients that neither saw.
"""

import os
import platform
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from brainseg_runtime.geometry import Geometry
from brainseg_runtime.nifti import write_image, write_labels
from brainseg_runtime.overlap import dice
from brainseg_trainer.config import load
from brainseg_trainer.dataset import find_training_scans
from brainseg_trainer.evaluate import evaluate
from brainseg_trainer.fit import fit
from brainseg_trainer.networks import load_network
from brainseg_trainer.progress import Progress
from brainseg_trainer.run import RunFolder
from brainseg_trainer.task import BRATS_WORDS

RECIPE = Path(__file__).with_suffix(".toml")
SPACING_MM = (1.875, 1.875, 1.211)
REGIONS = {"WT": (1, 2, 4), "TC": (1, 4), "ET": (4,)}
LABELS = (0, 1, 2, 4)


@dataclass(frozen=True, eq=False)
class Crop:
    """A lesion and what lies around it."""

    name: str
    """As BraTS 2023 names a patient's visits, so that all lesions of one stay together."""
    image: np.ndarray
    """(32, 32, 32, 4): T1, T1c, T2, FLAIR, z-scored over the brain; 0 outside it."""
    labels: np.ndarray
    """(32, 32, 32): 0, 1 NCR, 2 ED, 4 ET."""
    inside: np.ndarray
    """(32, 32, 32): where there are data; the rest fills the cube up."""


def crops(files: list[Path]) -> Iterator[Crop]:
    """All crops of files, in their order."""
    lesions: Counter[str] = Counter()
    for path in files:
        with np.load(path) as file:
            parts = [file[key] for key in ("lesion", "image", "label", "inside_crop")]
        for lesion, image, labels, inside in zip(*parts, strict=True):
            patient = str(lesion).split("_")[2]
            lesions[patient] += 1
            name = f"BraTS-CUBE-{int(patient):05d}-{lesions[patient]:03d}"
            yield Crop(name, np.moveaxis(image.astype(np.float32), 0, -1), labels, inside > 0)


def write_crops(found: list[Crop], folder: Path) -> None:
    """Write crops as scans with truth."""
    geometry = Geometry((32, 32, 32), np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1.0]))
    for crop in found:
        place = folder / crop.name
        place.mkdir(parents=True, exist_ok=True)
        for c, word in enumerate(BRATS_WORDS.values()):
            write_image(place / f"{crop.name}-{word}.nii.gz", crop.image[..., c], geometry)
        write_labels(place / f"{crop.name}-seg.nii.gz", crop.labels, geometry)


Dices = dict[str, np.ndarray]
"""Region -> Dice of every crop, 1 where both sides are empty (BraTS)."""


def discriminant(training: list[Crop], unseen: list[Crop], *, shares: bool) -> Dices:
    """Dice of the most likely of four Gaussians (quadratic discriminant analysis).

    ``shares``: a label counts as much as it occurs in training; else all count alike.
    """
    values = np.concatenate([crop.image[crop.inside] for crop in training]).astype(np.float64)
    labels = np.concatenate([crop.labels[crop.inside] for crop in training])
    means = [values[labels == label].mean(axis=0) for label in LABELS]
    spreads = [np.cov(values[labels == label].T) for label in LABELS]
    before = [np.log(np.mean(labels == label)) if shares else 0.0 for label in LABELS]

    def answer(crop: Crop) -> np.ndarray:
        scores = []
        for mean, spread, prior in zip(means, spreads, before, strict=True):
            apart = crop.image.astype(np.float64) - mean
            distance = np.einsum("...i,ij,...j->...", apart, np.linalg.inv(spread), apart)
            scores.append(prior - (distance + np.linalg.slogdet(spread)[1]) / 2)
        return np.where(crop.inside, np.array(LABELS)[np.argmax(scores, axis=0)], 0)

    answers = [answer(crop) for crop in unseen]
    return {
        region: np.array(
            [
                dice(np.isin(mine, members), np.isin(crop.labels, members))
                for mine, crop in zip(answers, unseen, strict=True)
            ]
        )
        for region, members in REGIONS.items()
    }


def table(network: Dices, by_shares: Dices, alike: Dices, unseen: list[Crop]) -> str:
    """All answers side by side, in Markdown, over all crops and over those that have the region."""
    lines = [
        "| region | crops | network | discriminant | difference | discriminant, labels alike | difference |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for region, members in REGIONS.items():
        there = np.array([np.isin(crop.labels, members).any() for crop in unseen])
        for words, chosen in (("all", np.ones_like(there)), ("with it", there)):
            ours, one, two = (float(d[region][chosen].mean()) for d in (network, by_shares, alike))
            lines.append(
                f"| {region} | {words}, {chosen.sum()} | {ours:.3f} | {one:.3f} | {ours - one:+.3f} "
                f"| {two:.3f} | {ours - two:+.3f} |"
            )
    return "\n".join(lines)


def page(results: str, crops: tuple[int, int], run: RunFolder) -> str:
    """What was done and what came of it, with date, versions and machine."""
    found = run.read_metrics()["validation"]
    held_out = ", ".join(f"{region} {dice:.3f}" for region, dice in found["mean_dice"].items())
    return f"""# Trained on real lesions

Written by `make cubes CUBES=<folder>` on {date.today()}: {platform.processor() or platform.machine()},
{os.cpu_count()} cores, keras {version("keras")}, {found["backend"]}.

{crops[0]} crops of 32^3 voxels around lesions of BraTS 2020 (Menze 2015, Bakas 2017, Bakas 2018; research
use) are trained on with [benchmarks/cubes.toml](../benchmarks/cubes.toml): {found["steps"]} steps in
{found["seconds"] / 60:.0f} minutes. A part of their patients is held out to choose the network, which was
that of step {found["best_step"]} (mean Dice {held_out}). {crops[1]} crops of other patients are then scored.
The quadratic discriminant is a Gaussian of the four intensities per label, fitted on the same training
crops, labels weighed by how often they occur there, or all alike. Mean Dice, 1 where neither truth nor answer
has the region:

{results}

The patients are another kind: those trained on have high-grade tumours, in which every core enhances; of the
others many have low-grade ones, in which it does not. The crops hold little healthy brain, so this says
nothing about whole scans.
"""


def main(
    cubes: Annotated[Path, typer.Argument(help="The folder of train_0..3.npz and validation.npz.")],
    out: Annotated[Path, typer.Option("-o", help="Where crops and run are kept.")],
    config: Annotated[Path, typer.Option(help="The recipe.")] = RECIPE,
    score: Annotated[bool, typer.Option(help="Score on the validation file at the end.")] = True,
    write: Annotated[Path | None, typer.Option(help="Write the page of the results here.")] = None,
) -> None:
    """Train on the training files and score once on the validation file, beside the discriminant."""
    training, unseen = list(crops(sorted(cubes.glob("train_*.npz")))), list(crops([cubes / "validation.npz"]))
    for name, found in (("train", training), ("unseen", unseen)):
        if not (out / name).exists():
            write_crops(found, out / name)
    settings = load(str(config))
    run = RunFolder(out / settings.name)
    run.go_on(settings) if run.config.exists() else run.begin(settings)
    if not run.model.exists():
        fit(out / "train", run, Progress())
    if not score:
        return
    spec = run.read_spec()
    source = find_training_scans(out / "unseen", spec)
    progress = Progress()
    scores = evaluate(
        load_network(run.model),
        spec,
        source,
        source.scans,
        lambda done, total: progress("scoring crops", done, total),
    )
    ours = {score.scan: score.dice for score in scores}
    network = {region: np.array([ours[crop.name][region] for crop in unseen]) for region in REGIONS}
    baselines = (discriminant(training, unseen, shares=shares) for shares in (True, False))
    results = table(network, *baselines, unseen)
    typer.echo(results)
    if write:
        write.write_text(page(results, (len(training), len(unseen)), run))


if __name__ == "__main__":
    typer.run(main)
