"""Which network the default model is: several on the same real lesions, at equal steps and at equal time.

Each is trained by ``brainseg-train fit`` in a process of its own, whose memory is measured, on crops of
lesions (``benchmarks.cubes``), and scored on those of held-out patients.
"""

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from brainseg_trainer.config import Network, load
from brainseg_trainer.evaluate import evaluate
from brainseg_trainer.figures.canvas import new_figure, save
from brainseg_trainer.networks import load_network
from brainseg_trainer.networks.cost import cost_of
from brainseg_trainer.progress import Progress
from brainseg_trainer.run import RunFolder
from brainseg_trainer.sources import open_data

from benchmarks.cubes import RECIPE, crops, write_crops
from benchmarks.report import table

REGIONS = ("WT", "TC", "ET")
NETWORKS = {
    "s2d 24": Network("s2d", 24, 4),
    "s2d 24, instance norm": Network("s2d", 24, 4, "instance"),
    "s2d 48": Network("s2d", 48, 4),
    "nnunet 16": Network("nnunet", 16, 4),
    "nnunet 32": Network("nnunet", 32, 4),
    "isensee2017 16": Network("isensee2017", 16, 4, upsampling="nearest"),
}
"""With batch norm but for one; the first is the default model's."""


@dataclass(frozen=True, eq=False)
class Trained:
    """What came of one network's training."""

    network: str
    steps: int
    seconds: float
    """On steps alone."""
    peak_gb: float
    dice: dict[str, np.ndarray]
    """Region -> Dice of every held-out crop."""
    parameters: int
    multiplications: int
    """For one crop."""


def train(network: str, steps: int, data: Path, out: Path) -> Trained:
    """Train one network for so many steps, or take the run that is there, and score it."""
    name = f"{network.replace(', ', '-').replace(' ', '-')}-{steps}"
    run, peak = RunFolder(out / name), out / f"{name}.peak"
    if not run.model.exists():
        recipe = load(str(RECIPE))
        training = replace(
            recipe.training,
            steps=steps,
            warmup=max(1, steps // 10),
            validate_every=steps,
            ema=max(0.0, 1 - 10 / steps),
            precision="bf16",
        )
        if not run.config.exists():
            run.begin(replace(recipe, name=name, network=NETWORKS[network], training=training))
        program = Path(sys.executable).with_name("brainseg-train")
        child = subprocess.Popen([str(program), "fit", str(data), "--run", str(run.path), "--resume"])
        _, status, usage = os.wait4(child.pid, 0)
        if status:
            raise typer.Exit(os.waitstatus_to_exitcode(status))
        peak.write_text(str(usage.ru_maxrss / 1e6))
    config = run.read_config()
    found = open_data(data, config)
    _, held_out = found.divided(config)
    progress = Progress()
    scores = evaluate(
        load_network(run.model),
        run.read_spec(),
        found.scans,
        held_out,
        lambda done, total: progress(f"scoring {network}", done, total),
    )
    cost = cost_of(config)
    return Trained(
        network,
        steps,
        run.read_metrics()["validation"]["seconds"],
        float(peak.read_text()),
        {region: np.array([score.dice[region] for score in scores]) for region in REGIONS},
        cost.parameters,
        cost.multiplications,
    )


def draw(equal_steps: Sequence[Trained], equal_time: Sequence[Trained], path: Path) -> None:
    """Dice against minutes of training, a line from one training to the other for every network."""
    figure = new_figure(11, 4, "Networks on the same lesions: equal steps (ring), equal time (dot)")
    for panel, region in zip(figure.subplots(1, 3), REGIONS, strict=True):
        for n, (one, other) in enumerate(zip(equal_steps, equal_time, strict=True)):
            xs = [one.seconds / 60, other.seconds / 60]
            ys = [float(one.dice[region].mean()), float(other.dice[region].mean())]
            panel.plot(xs, ys, color=f"C{n}", label=one.network)
            panel.plot(xs[:1], ys[:1], "o", color=f"C{n}", mfc="white")
            panel.plot(xs[1:], ys[1:], "o", color=f"C{n}")
        panel.set_title(region)
        panel.set_xlabel("minutes")
        panel.set_ylabel("mean Dice, held-out lesions")
    figure.legend(*panel.get_legend_handles_labels(), loc="outside lower center", ncols=6)
    save(figure, path)


def rows(trained: Sequence[Trained]) -> list[list[str]]:
    """Steps, seconds, memory and Dice of every network; the difference in ET from the first one, paired."""

    def difference(one: Trained) -> str:
        apart = one.dice["ET"] - trained[0].dice["ET"]
        return f"{apart.mean():+.3f} ± {apart.std(ddof=1) / np.sqrt(len(apart)):.3f}" if apart.any() else ""

    return [
        [
            one.network,
            str(one.steps),
            f"{one.seconds:.0f}",
            f"{one.peak_gb:.1f}",
            *(f"{one.dice[region].mean():.3f}" for region in REGIONS),
            difference(one),
        ]
        for one in trained
    ]


def page(equal_steps: Sequence[Trained], equal_time: Sequence[Trained], picture: str) -> str:
    """Both trainings of every network, in Markdown, with date, versions and machine."""
    head = ["network", "steps", "seconds", "peak GB", *REGIONS, "ET against the first"]
    costs = [
        [one.network, f"{one.parameters / 1e6:.2f}", f"{one.multiplications / 1e9:.2f}"]
        for one in equal_steps
    ]
    return "\n".join(
        [
            "# Which network",
            "",
            f"Written by `make ablation CUBES=<folder>` on {date.today()}: {platform.machine()}, "
            f"{len(os.sched_getaffinity(0))} cores, keras {version('keras')}, bfloat16.",
            "",
            "Crops of 32^3 voxels around real lesions (see [lesion-cubes.md](lesion-cubes.md)), trained on "
            f"by that page's recipe with other networks. Mean Dice of {len(equal_steps[0].dice['ET'])} "
            "crops of held-out patients; ± is the standard error of the paired difference over these crops. "
            "One seed each: a difference below two standard errors decides nothing.",
            "",
            *table(["network", "M parameters", "GMAC a crop"], costs),
            "Equal steps:",
            "",
            *table(head, rows(equal_steps)),
            "Equal time, as far as the speed of the first training told how many steps that is:",
            "",
            *table(head, rows(equal_time)),
            f"![Dice against minutes]({picture})",
            "",
        ]
    )


def main(
    cubes: Annotated[Path, typer.Argument(help="The folder of train_0..3.npz.")],
    steps: Annotated[int, typer.Option(help="Of every network.")] = 250,
    minutes: Annotated[float, typer.Option(help="Of every network, in the second training.")] = 3.0,
    out: Annotated[Path, typer.Option("-o", help="Where crops and runs are kept.")] = Path("runs/ablation"),
    write: Annotated[Path, typer.Option(help="The page.")] = Path("docs/networks.md"),
) -> None:
    """Train every network twice: for so many steps, and for so many minutes at the speed that this showed."""
    data = out / "crops"
    if not data.exists():
        write_crops(list(crops(sorted(cubes.glob("train_*.npz")))), data)
    equal_steps = [train(network, steps, data, out) for network in NETWORKS]
    equal_time = [
        train(one.network, max(2, round(60 * minutes * one.steps / one.seconds)), data, out)
        for one in equal_steps
    ]
    draw(equal_steps, equal_time, write.with_suffix(".png"))
    write.write_text(page(equal_steps, equal_time, write.with_suffix(".png").name))


if __name__ == "__main__":
    typer.run(main)
