"""``brainseg plans``: what is kept of TensorRT plans on this machine, and what is to be done about it."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from brainseg_runtime.console import Keys

if TYPE_CHECKING:
    from brainseg_runtime.bundle import Bundle, Precision
    from brainseg_runtime.plans.cache import Entry
    from brainseg_runtime.plans.flavour import Flavour

__all__ = ["plans", "ready"]

plans = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout.")]


@plans.callback()
def _plans() -> None:
    """TensorRT plans of this machine: built here, for its GPU and driver, and never taken from outside."""


@plans.command("list")
def list_plans(as_json: AsJson = False) -> None:
    """Say which plans are kept, which nothing here can run any more, and which this environment cannot."""
    from brainseg_runtime.console import aligned
    from brainseg_runtime.plans.cache import PlanCache
    from brainseg_runtime.plans.local import foreign, lacking

    cache = PlanCache.open()
    found = [(entry, {"foreign": foreign(entry), "lacking": lacking(entry)}) for entry in cache.entries()]
    if as_json:
        for entry, why in found:
            typer.echo(json.dumps({"schema": 1, "event": "plan", **vars(entry), **why}))
    elif found:
        typer.echo(
            aligned([(*_row(entry), why["foreign"] or why["lacking"] or "ready") for entry, why in found])
        )
    else:
        typer.echo(f"no plans in {cache.folder}")


@plans.command()
def build(
    bundle: Annotated[
        Path | None, typer.Argument(help="A bundle's folder.", show_default="the default model")
    ] = None,
    precision: Annotated[Literal["fp32", "fp16"], typer.Option(help="Which of its graphs.")] = "fp16",
    device: Annotated[str, typer.Option(help="For which GPU.")] = "cuda:0",
    lean: Annotated[
        bool, typer.Option("--lean", help="For environments on this machine with the lean library only.")
    ] = False,
    require_signature: Keys = None,
) -> None:
    """Build the plan of a bundle, unless it is there already.

    Exit status: 0 it is there, 5 no GPU, no TensorRT, or TensorRT does not build it, 6 the bundle is invalid,
    7 the plan cannot be kept.
    """
    from brainseg_runtime.bundle import Bundle
    from brainseg_runtime.default_model import default_model
    from brainseg_runtime.plans.flavour import FLAVOURS

    opened = Bundle.open(bundle or default_model(), require_signature)
    typer.echo(ready(opened, precision, device, FLAVOURS["lean"] if lean else None))


@plans.command()
def verify() -> None:
    """Hold every plan against its seal.

    Exit status: 0 all are as they were built here, 6 not; such a plan is never loaded, and built anew.
    """
    from brainseg_runtime.console import aligned
    from brainseg_runtime.plans.cache import PlanCache

    found = list(PlanCache.open().entries())
    if found:
        typer.echo(aligned([(*_row(entry), entry.problem or "ok") for entry in found]))
    raise typer.Exit(6 if any(entry.problem for entry in found) else 0)


@plans.command()
def prune(
    everything: Annotated[bool, typer.Option("--all", help="Those that could still run, too.")] = False,
) -> None:
    """Remove the plans that nothing on this machine can run any more: of another GPU or driver, or broken."""
    from brainseg_runtime.plans.cache import PlanCache
    from brainseg_runtime.plans.local import foreign

    cache = PlanCache.open()
    for entry in list(cache.entries()):
        if everything or foreign(entry):
            cache.discard(entry.key)
            typer.echo(f"removed {entry.key[:12]}: {foreign(entry) or 'as asked for'}")


def ready(
    bundle: "Bundle", precision: "Precision | None", device: str, flavour: "Flavour | None" = None
) -> str:
    """See that a bundle's plan is there, with a bar while it is built; a sentence about it.

    Without a ``precision`` it is the engine's own.

    Raises:
        UsageRefused: ``E_USAGE`` for a precision that the engine does not have.
        EngineUnavailable: as ``plans.local.plan_for``, and ``E_ENGINE_DEVICE`` where there is no GPU.
    """
    from brainseg_runtime.engines.choice import ENGINES, require_installed, require_precision
    from brainseg_runtime.gpu import find
    from brainseg_runtime.plans.local import plan_for

    precision = precision or ENGINES["trt"].precisions[0]
    require_precision("trt", precision)
    require_installed("trt", device)
    gpu = find(device)
    # Here, since without the packages that are required it cannot be imported.
    from brainseg_runtime.engines.cuda import use

    # TensorRT builds for the GPU that the thread works on.
    use(gpu.index)
    shown, label = 0, f"TensorRT plan for {gpu.name}"
    with typer.progressbar(length=1000, label=label, file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:

        def progress(phase: str, share: float) -> None:
            nonlocal shown
            bar.update(int(1000 * share) - shown)
            shown = int(1000 * share)

        local = plan_for(
            bundle.graph(precision), bundle.spec, precision, gpu, flavour=flavour, progress=progress
        )
    title = f"{local.flavour.title} {local.request.version}"
    return f"{local.request.key[:12]}  {precision}, {title}, {gpu.name}, {len(local.plan) / 1e6:.1f} MB"


def _row(entry: "Entry") -> tuple[str, ...]:
    told = entry.built_for
    if not told:
        return entry.key[:12], "-", "-", "-", "-", "-"
    return (
        entry.key[:12],
        f"graph {told['graph_sha256'][:12]}",
        told["precision"],
        f"{told['flavour']} {told['version']}",
        f"{told['gpu']} driver {told['driver']}",
        f"{entry.size / 1e6:.1f} MB, {entry.built}",
    )
