"""``brainseg-train``: data sets, a training run, its scores and its pictures.

Keras and TensorFlow take seconds to import, so each verb imports what it needs, and ``--help`` answers
at once.
"""

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from brainseg_runtime.console import end_with
from brainseg_runtime.errors import EngineUnavailable

from brainseg_trainer.backend import set_backend

__all__ = ["main"]

# Plain help: rich would take longer to import than all the rest.
PLAIN: dict[str, Any] = {"add_completion": False, "pretty_exceptions_enable": False, "rich_markup_mode": None}
app = typer.Typer(no_args_is_help=True, **PLAIN)

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.", show_default=False)]
DataPath = Annotated[
    Path, typer.Argument(metavar="DATA", help="A folder of scans with truth.", show_default=False)
]


DataOrStore = Annotated[
    Path, typer.Argument(metavar="DATA", help="A folder of scans with truth, or a store.", show_default=False)
]
Config = Annotated[
    str | None,
    typer.Option(help="A TOML file, or a recipe.", show_default="glioma; figshare for its slices"),
]


@app.callback()
def _brainseg_train() -> None:
    """Train the networks that brainseg deploys. Research use only, not a medical device."""


@app.command()
def synthetic(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Where to write.", show_default=False)],
    count: Annotated[int, typer.Option(min=1, help="How many scans.")] = 24,
    seed: Annotated[int, typer.Option(min=0, help="Other seeds give other scans.")] = 0,
) -> None:
    """Make scans of made-up heads with made-up tumours, truth included, under BraTS names.

    Exit status: 0 done, 2 usage, 7 output not writable.
    """
    from brainseg_trainer.progress import Progress
    from brainseg_trainer.synthetic import write_scans

    names = write_scans(out, count, seed, Progress())
    typer.echo(f"{len(names)} scans in {out}: {names[0]} to {names[-1]}")


@app.command()
def fit(
    data: DataOrStore,
    run: Annotated[Path, typer.Option(help="The run's folder.", show_default=False)],
    config: Config = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write events for TensorBoard into RUN/tensorboard.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes that train together (JAX).")] = 1,
    worker: Annotated[int, typer.Option(min=0, help="Which of them this is; 0 begins the run.")] = 0,
    address: Annotated[str, typer.Option(help="HOST:PORT where worker 0 listens.")] = "",
) -> None:
    """Train a network and score it on scans held out from training.

    Exit status: 0 done, 2 usage or not a run to go on with, 3 the scans do not do, 5 training diverged,
    7 output not writable, 8 out of memory, 130 interrupted (--resume goes on from the last checkpoint).
    """
    from brainseg_trainer.config import load
    from brainseg_trainer.run import RunFolder

    folder = RunFolder(run)
    if worker:
        folder.wait()
    elif resume:
        folder.go_on(load(config) if config else None)
    else:
        folder.begin(load(config or _recipe_for(data)))
    set_backend(folder.read_config().training.backend)
    if not folder.model.exists():
        from brainseg_trainer.fit import fit as train
        from brainseg_trainer.progress import Progress
        from brainseg_trainer.tensorboard import board_in
        from brainseg_trainer.workers import Workers

        try:
            with board_in(folder.path / "tensorboard") if tensorboard else nullcontext() as board:
                train(data, folder, Progress(), board, Workers(workers, worker, address))
        except EngineUnavailable as error:
            if workers == 1:
                raise
            # JAX would wait for the lost worker as Python ends, and abort.
            typer.echo(error, err=True)
            os._exit(error.exit_status)
    if worker:
        return
    _print_dice(folder.read_metrics()["validation"], "held-out scans")
    typer.echo(f"{folder.model}")


@app.command()
def networks(
    config: Annotated[
        str | None, typer.Option(help="A TOML file, or a recipe.", show_default="every full-size recipe")
    ] = None,
) -> None:
    """What networks cost: parameters, multiplications per tile, memory of a step and of an answer.

    Exit status: 0 done, 2 usage.
    """
    set_backend()
    from brainseg_trainer.config import RECIPES, load
    from brainseg_trainer.networks.cost import cost_of

    names = [config] if config else [name for name in RECIPES if not name.startswith("demo")]
    typer.echo("recipe          network      tile         batch  parameters  GMAC a tile  step GB  answer GB")
    for name in names:
        settings = load(name)
        cost = cost_of(settings)
        tile = "x".join(str(n) for n in settings.data.tile)
        typer.echo(
            f"{settings.name:15} {settings.network.preset:12} {tile:12} {settings.training.batch:5} "
            f"{cost.parameters / 1e6:9.2f} M {cost.multiplications / 1e9:12.1f} "
            f"{cost.training_bytes / 1e9:8.1f} {cost.inference_bytes / 1e9:10.2f}"
        )


@app.command()
def crossvalidate(
    data: DataOrStore,
    run: Annotated[Path, typer.Option(help="The folder of the five runs.", show_default=False)],
    config: Config = None,
) -> None:
    """Train five runs, each holding out a fifth of the patients; what was begun goes on.

    Exit status: 0 done, 2 usage or runs of another configuration, 3 the scans do not do or are of fewer
    than five patients, 5 training diverged, 7 output not writable, 8 out of memory, 130 interrupted.
    """
    from brainseg_trainer.config import load

    settings = load(config or _recipe_for(data))
    set_backend(settings.training.backend)
    from brainseg_trainer.crossvalidation import cross_validate
    from brainseg_trainer.progress import Progress

    result = cross_validate(data, run, settings, Progress())
    for region in result.regions:
        found = result.summary(region)
        typer.echo(
            f"{region}  Dice of {found.count} scans: mean {found.mean:.4f} "
            f"(95 % {found.low:.4f} to {found.high:.4f}), median {found.median:.4f}"
        )
    typer.echo(f"{run / 'metrics.json'}")


@app.command()
def evaluate(run: RunPath, data: DataPath) -> None:
    """Score a finished run on other scans; adds them to the run's metrics.json under their folder's name.

    Exit status: 0 done, 2 not a finished run, 3 the scans do not do, 7 output not writable.
    """
    set_backend()
    from brainseg_trainer.dataset import find_training_scans
    from brainseg_trainer.evaluate import evaluate as score
    from brainseg_trainer.evaluate import metrics
    from brainseg_trainer.networks import load_network
    from brainseg_trainer.progress import Progress
    from brainseg_trainer.run import RunFolder
    from brainseg_trainer.sources import origins_in

    folder = RunFolder(run)
    spec = folder.read_spec()
    source = find_training_scans(data, spec)
    progress = Progress()
    scores = score(
        load_network(folder.model),
        spec,
        source,
        source.scans,
        lambda done, total: progress("scoring scans", done, total),
        {scan: origin.kind for scan, origin in origins_in(data).items()},
    )
    folder.write_metrics(data.resolve().name, metrics(scores))
    for entry in scores:
        typer.echo(f"{entry.scan}  " + "  ".join(f"{r} {d:.4f}" for r, d in entry.dice.items()))
    _print_dice(metrics(scores), f"{len(scores)} scans of {data}")


@app.command()
def tune(run: RunPath, data: DataPath) -> None:
    """Choose each region's threshold on scans that the run never saw, and measure calibration.

    The run's spec.json gets the thresholds if whole scans score better with them; export it afterwards.
    Exit status: 0 done, 2 not a finished run, or scans that it was trained on, 3 the scans do not do,
    7 output not writable.
    """
    set_backend()
    from brainseg_trainer.dataset import find_training_scans
    from brainseg_trainer.networks import load_network
    from brainseg_trainer.progress import Progress
    from brainseg_trainer.run import RunFolder
    from brainseg_trainer.tune import tune as choose

    folder = RunFolder(run)
    spec = folder.read_spec()
    trained_on = folder.read_metrics()["validation"]["trained_on"]
    source = find_training_scans(data, spec)
    tuning = choose(load_network(folder.model), spec, source, trained_on, Progress())
    folder.write_metrics("thresholds", tuning.as_dict())
    folder.write_spec(tuning.spec)
    for region in tuning.spec.regions:
        name = region.name
        typer.echo(
            f"{name}  threshold {region.threshold:.2f} (tried {tuning.thresholds[name]:.2f}: Dice "
            f"{tuning.before[name]:.4f} -> {tuning.after[name]:.4f})  Brier {tuning.brier[name]:.4f}  "
            f"calibration error {tuning.calibration_error[name]:.4f}"
        )
    typer.echo(f"{folder.spec} {'has the new' if tuning.is_better else 'keeps its'} thresholds")


@app.command()
def figures(run: RunPath) -> None:
    """Draw a finished run: curves, scores, volumes, thresholds, truth beside prediction.

    Scans that it kept for parity are shown; it never trained on them.
    Exit status: 0 done, 2 not a finished run, 7 output not writable.
    """
    set_backend()
    from brainseg_trainer.run import RunFolder

    # Before Keras is imported, which takes seconds.
    RunFolder(run).read_spec()
    from brainseg_trainer.figures.render import render_run

    for path in render_run(RunFolder(run), lambda text: typer.echo(text, err=True)):
        typer.echo(path)


@app.command()
def gallery(
    data: DataPath,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to draw.", show_default=False)],
    config: Config = None,
) -> None:
    """Draw a data set: how much of each kind or volume, slices with their truth, and tumours.

    Exit status: 0 done, 2 usage, 3 the scans do not do, 7 output not writable.
    """
    set_backend()
    from brainseg_trainer.config import load
    from brainseg_trainer.figures.render import render_data
    from brainseg_trainer.sources import open_data

    found = open_data(data, load(config or _recipe_for(data)))
    for path in render_data(found, output, lambda text: typer.echo(text, err=True)):
        typer.echo(path)


@app.command()
def score(
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="A folder of <scan>_seg.nii.gz.", show_default=False)
    ],
    truth: Annotated[
        Path,
        typer.Argument(metavar="TRUTH", help="A folder of scans with truth, or labels.", show_default=False),
    ],
    spec: Annotated[
        Path | None, typer.Option(help="The model's spec.json.", show_default="WT, TC, ET of glioma")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all measures and their summaries.")
    ] = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write a row per scan and region.")] = None,
) -> None:
    """Compare masks with the truth: a table of Dice; distances, lesions and volumes with --json or --csv.

    Exit status: 0 done, 2 usage, 3 a mask or a truth does not do, 7 output not writable.
    """
    from brainseg_runtime.files import write_atomically

    from brainseg_trainer.progress import Progress
    from brainseg_trainer.scoring.folder import find_answers, find_truths, score_folder
    from brainseg_trainer.scoring.tables import page, to_csv, to_json
    from brainseg_trainer.task import read_spec

    task = read_spec(spec)
    answers = find_answers(out)
    progress = Progress()
    scores = score_folder(
        answers, find_truths(truth, task), task, lambda done, total: progress("scoring scans", done, total)
    )
    if json_file:
        write_atomically(json_file, to_json(scores).encode())
    if csv_file:
        write_atomically(csv_file, to_csv(scores).encode())
    typer.echo(page(answers, scores))


@app.command()
def store(
    data: DataPath,
    output: Annotated[Path, typer.Option("-o", "--output", help="The store, x.h5.", show_default=False)],
    config: Config = None,
) -> None:
    """Prepare a data set once, into one HDF5 file that fit takes: BraTS, MSD, nnU-Net, figshare import.

    Exit status: 0 done, 2 usage, 3 the scans do not do, 4 some scans refused, the rest stored, 7 output not
    writable.
    """
    set_backend()
    from brainseg_trainer.config import load
    from brainseg_trainer.progress import Progress
    from brainseg_trainer.sources import open_data
    from brainseg_trainer.store import write_store

    found = open_data(data, load(config or _recipe_for(data)))
    progress = Progress()
    made = write_store(
        output,
        found.scans,
        data,
        found.spec,
        found.origins,
        lambda done, total: progress("preparing scans", done, total),
    )
    for scan, refusal in made.refused.items():
        typer.echo(f"{scan}: {refusal}", err=True)
    patients = len({scan.patient for scan in made.scans})
    folds = len({scan.fold for scan in made.scans})
    typer.echo(f"{len(made.scans)} scans of {patients} patients in {folds} folds: {made.path}")
    raise typer.Exit(4 if made.refused else 0)


figshare_app = typer.Typer(no_args_is_help=True, help="The slices of figshare 1512427.", **PLAIN)
app.add_typer(figshare_app, name="figshare")


@figshare_app.command("import")
def figshare_import(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE", help="The folder of .mat files or zips, or one zip.", show_default=False
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write.", show_default=False)],
    planes: Annotated[
        Path | None, typer.Option(help="A CSV with the columns number and plane, where you know planes.")
    ] = None,
) -> None:
    """Write slices as scans with truth, stacked where neighbours lie in one plane; geometry is nominal.

    Exit status: 0 all 3064 imported, 2 usage, 3 nothing to import or folds that part a patient, 4 some
    slices are damaged or missing, the rest imported, 7 output not writable.
    """
    from brainseg_trainer.figshare import import_slices, read_planes
    from brainseg_trainer.progress import Progress

    known = read_planes(planes) if planes else {}
    result = import_slices(source, output, known, Progress())
    for name, refusal in result.refused.items():
        typer.echo(f"{name}: {refusal}", err=True)
    for name in result.foreign:
        typer.echo(f"{name}: no file of figshare 1512427", err=True)
    for remark in result.remarks:
        typer.echo(remark, err=True)
    slices = sum(len(stack.numbers) for stack in result.stacks)
    patients = len({stack.patient for stack in result.stacks})
    typer.echo(
        f"{slices} slices of {patients} patients in {len(result.stacks)} scans in {output}; "
        f"{len(result.refused)} files refused, {len(result.missing)} slices missing. Geometry is nominal."
    )
    raise typer.Exit(0 if result.is_whole else 4)


simulation_app = typer.Typer(no_args_is_help=True, help="Heads that are simulated without end.", **PLAIN)
app.add_typer(simulation_app, name="simulation")


@simulation_app.command("gather")
def simulation_gather(
    heads: Annotated[
        Path, typer.Argument(metavar="HEADS", help="SynthSeg's label maps.", show_default=False)
    ],
    template: Annotated[
        Path, typer.Argument(metavar="TEMPLATE", help="MNI152's tissue maps.", show_default=False)
    ],
    lesions: Annotated[
        Path, typer.Argument(metavar="LESIONS", help="BraTS 2020's lesion crops.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Where to write.", show_default=False)],
) -> None:
    """Gather what heads are simulated from: anatomy, tumours, what they look like, real lesions.

    Exit status: 0 done, 3 the data do not do, 7 output not writable.
    """
    from brainseg_trainer.simulation import HELD_OUT, TRAINING
    from brainseg_trainer.simulation.ingredients import gather

    training, held_out = gather(heads, template, lesions)
    for name, ingredients in ((TRAINING, training), (HELD_OUT, held_out)):
        ingredients.save(out / name)
        typer.echo(
            f"{out / name}: {len(ingredients.heads)} heads, {len(ingredients.tumours)} tumours, "
            f"{len(ingredients.crops)} crops"
        )


@simulation_app.command("scans")
def simulation_scans(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What was gathered.", show_default=False)],
    count: Annotated[int, typer.Option(min=1, help="Scans of each kind.")] = 8,
) -> None:
    """Write simulated scans with truth beside what was gathered, for training to hold out.

    Exit status: 0 done, 3 nothing was gathered there, 7 output not writable.
    """
    from brainseg_trainer.progress import Progress
    from brainseg_trainer.simulation import HELD_OUT, require_jax

    require_jax()
    from brainseg_trainer.simulation.ingredients import Ingredients
    from brainseg_trainer.simulation.scans import write_held_out

    names = write_held_out(Ingredients.load(folder / HELD_OUT), folder, count, Progress())
    typer.echo(f"{len(names)} scans in {folder}")


def _recipe_for(data: Path) -> str:
    """The recipe that suits the data, where the user names none."""
    from brainseg_trainer.figshare import is_import
    from brainseg_trainer.store import folder_of

    return "figshare" if is_import(folder_of(data)) else "glioma"


def _print_dice(scores: dict[str, Any], what: str) -> None:
    dice = ", ".join(f"{region} {value:.4f}" for region, value in scores["mean_dice"].items())
    typer.echo(f"mean Dice on {what}: {dice}")
    if "type_accuracy" in scores:
        typer.echo(f"type of tumour right in {100 * scores['type_accuracy']:.1f} %")


def main() -> NoReturn:
    """``brainseg-train``."""
    end_with(lambda: app(prog_name="brainseg-train"))
