"""``brainseg-infer``: a folder of scans in, a folder of segmentations out.

It imports the rest inside its functions, so that ``--help``
answers at once.
"""

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from brainseg_runtime.console import Keys, end_with
from brainseg_runtime.plans.cli import plans

if TYPE_CHECKING:
    from brainseg_runtime.batch import Outcome
    from brainseg_runtime.outputs import AttachmentKind
    from brainseg_runtime.rehearsal import Planned

__all__ = ["infer_main", "main"]

# Plain help: rich would take longer to import than all the rest.
PLAIN: dict[str, Any] = {"add_completion": False, "pretty_exceptions_enable": False, "rich_markup_mode": None}

app = typer.Typer(no_args_is_help=True, **PLAIN)
app.add_typer(plans, name="plans")


@app.callback()
def _brainseg() -> None:
    """Brain-tumour segmentation, deployed. Research use only, not a medical device."""


@app.command()
def infer(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="SCANS...", help="Folders of scans, or one scan's folder.", show_default=False
        ),
    ],
    model: Annotated[
        list[Path] | None,
        typer.Option(
            "--model",
            "-m",
            help="The bundle to run; several are averaged.",
            show_default="brainseg-glioma, of the extra model",
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path("out"),
    engine: Annotated[
        Literal["auto", "openvino", "ort", "trt"],
        typer.Option(help="A named engine is a demand; auto says what it took, and why."),
    ] = "auto",
    device: Annotated[
        str | None,
        typer.Option(
            help="Where to compute: cpu or cuda:0; cuda:0,cuda:1 is a process each.",
            show_default="cpu; cuda:0 for trt",
        ),
    ] = None,
    precision: Annotated[
        Literal["fp32", "fp16", "bf16"] | None,
        typer.Option(
            help="As far as the bundle's certificate covers it.", show_default="fp16 for trt, else fp32"
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads of the engine.", show_default="one a core, shared by the devices"),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Tiles computed at a time.")] = 1,
    tile: Annotated[
        int | None,
        typer.Option(min=1, help="Blended tiles of this many voxels a side.", show_default="the model's"),
    ] = None,
    overlap: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=0.75, help="Share of a tile that its neighbours see too.", show_default="the model's"
        ),
    ] = None,
    tta: Annotated[
        bool, typer.Option("--tta", help="Average over all mirror images: 8 times the work.")
    ] = False,
    max_memory: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="MB", help="Cut or refuse what takes more.", show_default="the machine's"
        ),
    ] = None,
    label_scheme: Annotated[
        Literal["brats2023", "brats2021", "regions"],
        typer.Option(help="ET = 3, ET = 4, or one 0/1 map a region."),
    ] = "brats2023",
    preview: Annotated[
        bool, typer.Option("--preview", help="Picture: three planes through the largest lesion.")
    ] = False,
    gif: Annotated[bool, typer.Option("--gif", help="Picture: the regions in the head, turning.")] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Page: slices to scroll, volumes, flags; index.html for all.")
    ] = False,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Map of every region's probability, 0..255.")
    ] = False,
    output_type: Annotated[
        str | None,
        typer.Option(
            help="What is written beside the NIfTI mask, a list of dicom-seg, dicom-labelmap, dicom-sr; "
            "nifti for nothing more.",
            show_default="dicom-seg,dicom-sr for DICOM, nifti for NIfTI",
        ),
    ] = None,
    input_type: Annotated[
        Literal["auto", "nifti", "dicom"], typer.Option(help="auto looks into the files and says it.")
    ] = "auto",
    resample_to: Annotated[
        str | None,
        typer.Option(help="Modality whose grid the others are resampled onto.", show_default="refuse"),
    ] = None,
    register: Annotated[
        bool, typer.Option("--register", help="Move the others onto that modality first, rigidly.")
    ] = False,
    rules: Annotated[
        Path | None,
        typer.Option(help="TOML rules by which DICOM series are chosen.", show_default="brainseg's own"),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            min=0.0, metavar="SECONDS", help="Refuse a scan that takes longer.", show_default="none"
        ),
    ] = None,
    checksums: Annotated[
        Path | None,
        typer.Option(
            metavar="SHA256SUMS", help="Refuse files that are not as this list says.", show_default="none"
        ),
    ] = None,
    require_signature: Keys = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Redo scans that are done.")] = False,
    explain_matching: Annotated[
        bool, typer.Option("--explain-matching", help="Only say which file is taken for what, and why.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say how every scan would be computed, and its memory.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print failures only.")] = False,
) -> None:
    """Segment scans: <scan>_seg.nii.gz and <scan>_seg.json for each, volumes.csv for all.

    Exit status: 0 done, 2 usage, 3 every scan refused, 4 some refused or failed and the rest done,
    5 engine or device unavailable, 6 model invalid, 7 output not writable, 8 out of memory or time,
    130 interrupted.
    """
    from brainseg_runtime.attachments import require
    from brainseg_runtime.batch import exit_status, run
    from brainseg_runtime.bundle import Bundle
    from brainseg_runtime.checksums import hold, load_checksums
    from brainseg_runtime.default_model import default_model
    from brainseg_runtime.devices import Workers, devices_of, share
    from brainseg_runtime.engines.choice import default_device
    from brainseg_runtime.inputs import find, kind_of, require_dicom, result_kinds
    from brainseg_runtime.memory import MEGABYTE
    from brainseg_runtime.rehearsal import rehearse
    from brainseg_runtime.scans import explain, find_scans
    from brainseg_runtime.segmenter import Segmenter, load

    devices = devices_of(device or default_device(engine))
    models = model or [default_model()]
    if explain_matching:
        spec = Bundle.open(models[0], require_signature).spec
        typer.echo(explain(find_scans(inputs, spec), spec))
        return
    asked: dict[AttachmentKind, bool] = {
        "probabilities": probabilities,
        "preview": preview,
        "gif": gif,
        "report": report,
    }
    attachments = [kind for kind, wanted in asked.items() if wanted]
    require(attachments)
    kind = kind_of(inputs) if input_type == "auto" else input_type
    attachments += result_kinds(output_type, kind)
    if kind == "dicom":
        require_dicom()
    if engine == "trt":
        from brainseg_runtime.plans.cli import ready

        for folder in models:
            for one in dict.fromkeys(devices):
                ready(Bundle.open(folder, require_signature), precision, one)
    limit = None if max_memory is None else max_memory * MEGABYTE
    threads, limit = share(devices, threads, limit)
    opening = partial(
        load,
        models,
        engine,
        precision=precision,
        threads=threads,
        batch=batch,
        tile=tile,
        overlap=overlap,
        tta=tta,
        max_memory=limit,
        require_signature=require_signature,
        timeout=timeout,
    )
    # What --dry-run tells is the same on every device, but for what is free on its GPU.
    alone = len(devices) == 1 or dry_run
    opened: Segmenter | Workers = opening(device=devices[0]) if alone else Workers(opening, devices)
    with opened as segmenter:
        if isinstance(segmenter, Segmenter):  # the plan of a dry run is that of one of the processes
            segmenter.share_gpu(devices.count(devices[0]))
        say = _speaker(as_json, quiet)
        start = {**segmenter.record(), "engine_choice": segmenter.why, "input": kind, "default": not model}
        say({"event": "start", **start})
        found = find(inputs, segmenter.spec, kind, resample_to=resample_to, register=register, rules=rules)
        if checksums is not None:
            found = hold(found, load_checksums(checksums))
        outcomes: list[Outcome | Planned] = []
        total = len(found.scans) + len(found.refused)
        results: Iterator[Outcome | Planned]
        if dry_run and isinstance(segmenter, Segmenter):
            results = rehearse(segmenter, found)
        else:
            segment = segmenter.run if isinstance(segmenter, Workers) else partial(run, segmenter)
            results = segment(
                found,
                output,
                label_scheme=label_scheme,
                overwrite=overwrite,
                attachments=attachments,
                warn=lambda words: say({"event": "warning", "message": words}),
            )
        with typer.progressbar(results, length=total, file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:
            for outcome in bar:
                outcomes.append(outcome)
                say(_event(outcome))
        raise typer.Exit(exit_status(outcomes))


@app.command()
def selftest(
    bundle: Annotated[
        Path | None, typer.Argument(help="A bundle's folder.", show_default="the default model")
    ] = None,
    require_signature: Keys = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout.")] = False,
) -> None:
    """Run a bundle's known answer on every engine of this machine, in every precision.

    Exit status: 0 all that is certified passed, 6 something that is certified did not.
    """
    from brainseg_runtime.bundle import Bundle
    from brainseg_runtime.console import aligned
    from brainseg_runtime.default_model import default_model
    from brainseg_runtime.selftest import everywhere

    verdicts = list(everywhere(Bundle.open(bundle or default_model(), require_signature)))
    if as_json:
        for verdict in verdicts:
            typer.echo(json.dumps({"schema": 1, "event": "selftest", **vars(verdict)}))
    else:
        rows = [
            (
                v.engine,
                v.device,
                v.precision,
                "certified" if v.certified else "uncertified",
                v.code or "ok",
                v.detail,
            )
            for v in verdicts
        ]
        typer.echo(aligned(rows))
    raise typer.Exit(6 if any(verdict.broken for verdict in verdicts) else 0)


@app.command()
def verify_run(
    record: Annotated[
        Path, typer.Argument(metavar="SCAN_seg.json", help="What a run left.", show_default=False)
    ],
    inputs: Annotated[
        list[Path], typer.Argument(metavar="SCANS...", help="Where the scan is.", show_default=False)
    ],
    model: Annotated[
        list[Path] | None,
        typer.Option("--model", "-m", help="The bundle of the run.", show_default="the default model"),
    ] = None,
    require_signature: Keys = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Repeat a run as its record says, and compare the masks byte for byte.

    Exit status: 0 the same, 2 not a record or no such scan, 3 the files are others, 6 another model or mask.
    """
    from brainseg_runtime.default_model import default_model
    from brainseg_runtime.errors import BundleInvalid
    from brainseg_runtime.rerun import verify_run as verify

    told = verify(record, inputs, model or [default_model()], require_signature)
    if as_json:
        typer.echo(json.dumps({"schema": 1, "event": "verify-run", **vars(told), "same": told.same}))
    else:
        typer.echo(f"{told.scan}: mask {told.repeated}{', ' if told.engine else ''}{told.engine}")
    if not told.same:
        raise BundleInvalid(
            "E_RUN_DIFFERS",
            f"recorded was {told.recorded}, beside the record stands {told.standing}, repeated is "
            f"{told.repeated}{'; ' if told.engine else ''}{told.engine}.",
            "Compare the engine and its version, and whether the mask was changed after it was written.",
        )


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout.")] = False,
) -> None:
    """Say what is installed, what runs here, and what is missing, with the line that installs it.

    Exit status: 0 an engine runs and nothing is broken, 5 not.
    """
    from brainseg_runtime.console import aligned
    from brainseg_runtime.doctor import examine, exit_status

    findings = list(examine())
    if as_json:
        for finding in findings:
            typer.echo(json.dumps({"schema": 1, "event": "finding", **vars(finding)}))
    else:
        typer.echo(aligned([(finding.state, finding.what, finding.detail) for finding in findings]))
    raise typer.Exit(exit_status(findings))


@app.command()
def explain(
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="STUDY...", help="Folders or zip archives of DICOM.", show_default=False),
    ],
    model: Annotated[
        Path | None,
        typer.Option("--model", "-m", help="Also say what becomes of each study with this bundle."),
    ] = None,
    rules: Annotated[
        Path | None,
        typer.Option(help="TOML rules by which series are chosen.", show_default="brainseg's own"),
    ] = None,
) -> None:
    """Say of every DICOM series what it is taken for, and why.

    It shows the descriptions and file names of the series as they are, which may name a patient.
    """
    from brainseg_runtime.bundle import Bundle
    from brainseg_runtime.inputs import require_dicom

    require_dicom()
    from brainseg_runtime.dicom.rules import load_rules
    from brainseg_runtime.dicom.study import explain

    spec = Bundle.open(model).spec if model else None
    typer.echo(explain(inputs, load_rules(rules), spec))


def _speaker(as_json: bool, quiet: bool) -> Callable[[dict[str, Any]], None]:
    """How a run speaks: JSON lines, or a sentence an event; failures always on stderr."""

    def say(event: dict[str, Any]) -> None:
        if as_json:
            typer.echo(json.dumps({"schema": 1, **event}))
        elif event["event"] == "failed":
            typer.echo(f"{event['scan']}: {event['code']}: {event['message']}", err=True)
        elif not quiet:
            typer.echo(_sentence(event))

    return say


def _event(outcome: "Outcome | Planned") -> dict[str, Any]:
    from brainseg_runtime.batch import Done, Failed, Skipped
    from brainseg_runtime.rehearsal import Planned

    match outcome:
        case Planned(scan, plan):
            return {"event": "planned", "scan": scan, **plan}
        case Done(scan, written):
            return {
                "event": "done",
                "scan": scan,
                "mask": str(written.mask),
                "json": str(written.json),
                "volumes_ml": written.contents["volumes_ml"],
                **({"type": written.contents["type"]} if written.contents.get("type") else {}),
                "seconds": written.contents["seconds"],
                "warnings": written.contents.get("warnings", []),
                "flags": [flag["code"] for flag in written.contents.get("flags", ())],
            }
        case Skipped(scan):
            return {"event": "skipped", "scan": scan}
        case Failed(scan, error):
            return {
                "event": "failed",
                "scan": scan,
                "code": error.code,
                "message": f"{error.received} {error.remedy}",
            }


def _sentence(event: dict[str, Any]) -> str:
    match event["event"]:
        case "start":
            engine = event["engine"]
            default = ", the default" if event["default"] else ""
            return (
                f"model {event['model']['name']}{default}, engine {engine['engine']} {engine['version']} "
                f"({engine['provider']}, {engine['device']}, {engine['precision']}), "
                f"{event['engine_choice']}. "
                f"Input: {event['input']}. "
                "Research use only, not a medical device."
            )
        case "planned":
            tile = "x".join(map(str, event["tile"]))
            return (
                f"{event['scan']}: {event['passes']} x {tile} voxels, about {event['expected_memory_mb']} MB"
            )
        case "done":
            volumes = ", ".join(f"{name} {ml:.1f} ml" for name, ml in event["volumes_ml"].items())
            if "type" in event:
                told = event["type"]
                volumes += f", type {told['name']} ({told['probabilities'][told['name']]:.2f})"
            seconds = ", ".join(f"{stage} {s:.2f}" for stage, s in event["seconds"].items())
            warnings = "".join(f" ({warning})" for warning in event["warnings"])
            if event["flags"]:
                warnings += f" (look twice: {', '.join(dict.fromkeys(event['flags']))})"
            return f"{event['scan']}: {volumes}{warnings} [s: {seconds}] -> {event['mask']}"
        case "warning":
            return f"warning: {event['message']}"
        case _:
            return f"{event['scan']}: already done, skipped (--overwrite redoes it)"


def main() -> NoReturn:
    """``brainseg``."""
    end_with(lambda: app(prog_name="brainseg"))


def infer_main() -> NoReturn:
    """``brainseg-infer``: the verb ``infer`` on its own."""
    single = typer.Typer(**PLAIN)
    single.command()(infer)
    end_with(lambda: single(prog_name="brainseg-infer"))
