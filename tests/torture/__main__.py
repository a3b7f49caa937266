"""``python -m torture BUNDLE SCANS``: every trial in full, as one page."""

import os
import platform
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from brainseg_runtime.console import aligned

from torture import TRIALS
from torture.rows import Row, Setup

HEAD = """# Reliability

Written by `make torture` on {day}: {machine}, {cores} cores, Python {python}, {versions}.
Every trial has a fixed seed. {share}A shortened form of the same trials runs with the tests
(`tests/whole/test_torture.py`). What a line promises and does not keep is marked **missed**; a line without a
verdict is a number that is told and has no goal.

What no reader can see is counted in the lines of plain `.nii`, of headers changed before compression, and of
DICOM, none of which carries a checksum: `--checksums` takes a list of SHA-256 and closes that hole. Nor can a
mirrored image whose header is mirrored with it be told from a right one by anything that is in the files.
"""


def main(
    bundle: Path,
    scans: Path,
    write: Annotated[Path | None, typer.Option(help="The page.")] = None,
    share: Annotated[float, typer.Option(help="How much of the full numbers.")] = 1.0,
    only: Annotated[list[str] | None, typer.Option(help="Trials, by name.")] = None,
    data: Annotated[Path | None, typer.Option(help="Real scans.")] = None,
) -> None:
    """Put brainseg through all trials; the status is 1 where a goal is missed."""
    rows: list[Row] = []
    parts: dict[str, list[Row]] = {}
    for name, (title, trial) in TRIALS.items():
        if only and name not in only:
            continue
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as place:
            found = list(trial(Setup(Path(place), bundle.resolve(), scans.resolve(), share, data)))
        rows += found
        parts.setdefault(title, []).extend(found)
        seconds = time.perf_counter() - started
        typer.echo(f"{name}: {seconds:.0f} s")
        typer.echo(aligned([(r.what, r.tried, r.found, _verdict(r)) for r in found]))
        if write is not None:  # after each trial: what was run is told, also of a run that is stopped
            write.write_text(_page(parts, share), encoding="utf-8")
    raise typer.Exit(any(row.held is False for row in rows))


def _page(parts: Mapping[str, Sequence[Row]], share: float) -> str:
    text = _head(share)
    for title, rows in parts.items():
        text += f"\n## {title}\n\n| trial | tried | found | |\n| --- | --- | --- | --- |\n"
        text += "".join(f"| {r.what} | {r.tried} | {r.found} | {_verdict(r)} |\n" for r in rows)
    return text


def _verdict(row: Row) -> str:
    return {True: "held", False: "**missed**", None: ""}[row.held]


def _head(share: float) -> str:
    names = ("brainseg-runtime", "numpy", "nibabel", "simpleitk", "pydicom", "onnxruntime", "openvino")
    model = (
        next(
            (
                line.split(":", 1)[1].strip()
                for line in Path("/proc/cpuinfo").read_text().splitlines()
                if "model name" in line
            ),
            platform.processor(),
        )
        if Path("/proc/cpuinfo").exists()
        else platform.processor()
    )
    return HEAD.format(
        day=date.today().isoformat(),
        machine=model,
        cores=os.cpu_count(),
        python=platform.python_version(),
        versions=", ".join(f"{name} {version(name)}" for name in names),
        share="" if share == 1 else f"This page is of a run with {share:g} of the full numbers. ",
    )


if __name__ == "__main__":
    typer.run(main)
