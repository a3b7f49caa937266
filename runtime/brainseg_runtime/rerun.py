"""A run told by its record, made again: does the same input still give the same mask?"""

import hashlib
import json
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar, get_args

from brainseg_runtime.bundle import GRAPHS
from brainseg_runtime.engines.choice import ENGINES
from brainseg_runtime.errors import BundleInvalid, OutputUnwritable, ScanRefused, UsageRefused
from brainseg_runtime.files import open_regular
from brainseg_runtime.inputs import find, kind_of
from brainseg_runtime.memory import MEGABYTE, Beside
from brainseg_runtime.outputs import LabelScheme, write
from brainseg_runtime.segmenter import Ready, Segmenter, load

__all__ = ["Rerun", "verify_run"]

T = TypeVar("T")


@dataclass(frozen=True)
class Rerun:
    """What a run gave then and gives now."""

    scan: str
    recorded: str
    """SHA-256 of the mask, as the record says."""
    standing: str | None
    """Of the mask that stands beside the record; None where there is none."""
    repeated: str
    """Of the mask that was made now."""
    engine: str
    """What computed then and now, where they are not the same."""

    @property
    def same(self) -> bool:
        """Whether all masks are one, byte for byte; a mask that is no longer there is no difference."""
        return self.repeated == self.recorded and self.standing in (None, self.recorded)


@dataclass(frozen=True)
class _Told:
    """What a record says of a run, as far as it takes to repeat it."""

    scan: str
    mask: Path
    """Where it was written."""
    sha256: str
    """Of the mask."""
    model: dict[str, Any]
    engine: dict[str, Any]
    inputs: list[Any]
    label_scheme: LabelScheme
    opening: dict[str, Any]
    """How the model was opened, as ``load`` takes it."""
    finding: dict[str, Any]
    """How the scan was found, as ``inputs.find`` takes it."""

    @classmethod
    def read(cls, record: Path) -> Self:
        """Read a record.

        Raises:
            UsageRefused: ``E_USAGE`` for a file that is none.
        """
        try:
            told = json.loads(record.read_bytes())
            options, engine = dict(told["options"]), dict(told["engine"])
            tile = options["tile"] if options["scheme"] == "tiles" else None
            opening = {
                "engine": _one_of(ENGINES, engine["engine"]),
                "precision": _one_of(GRAPHS, engine["precision"]),
                "device": str(engine["device"]),
                "batch": int(options["batch"]),
                "tile": int(tile[0]) if tile and len(set(tile)) == 1 else None,
                "overlap": float(options["overlap"]) if tile else None,
                "tta": bool(options.get("tta", False)),
                # The plan follows from the limit; just this much gives the same one.
                "max_memory": (int(told["plan"]["expected_memory_mb"]) + 1) * MEGABYTE,
            }
            return cls(
                scan=str(told["scan"]),
                mask=record.with_name(told["mask"]["file"]),
                sha256=str(told["mask"]["sha256"]),
                model=dict(told["model"]),
                engine=engine,
                inputs=list(told["inputs"]),
                label_scheme=_one_of(get_args(LabelScheme), options["label_scheme"]),
                opening=opening,
                finding={
                    "resample_to": str(told["reference"]) if told["resample"] else None,
                    "register": bool(told["register"]),
                },
            )
        # RecursionError: lists in lists without end.
        except (
            OSError,
            ValueError,
            KeyError,
            IndexError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as error:
            raise UsageRefused(
                "E_USAGE", f"{record} is no record of a run: {error!r}.", "Give a <scan>_seg.json."
            ) from error


def verify_run(
    record: Path, inputs: Sequence[Path], model: Sequence[Path], require_signature: Path | None = None
) -> Rerun:
    """Segment a scan again as its ``<scan>_seg.json`` says it was, and compare.

    ``require_signature`` as for ``load``.

    Raises:
        UsageRefused: ``E_USAGE`` for a record that is none; ``E_INPUT_MISSING`` where the scan is not found.
        BundleInvalid: ``E_RUN_DIFFERS`` for another model than the record's.
        ScanRefused: ``E_CHECKSUM`` for other files than the record's.
        OutputUnwritable: ``E_OUTPUT`` where there is no room for the mask that is made.
        BrainsegError: as ``load`` and ``Segmenter.segment``.
    """
    told = _Told.read(record)
    opening = load(model, **told.opening, require_signature=require_signature)
    with opening as segmenter, _place() as place:
        if segmenter.model != told.model:
            raise BundleInvalid(
                "E_RUN_DIFFERS",
                f"the run was made by {told.model}, this model is {segmenter.model}.",
                "Give the bundle that the record names.",
            )
        ready = _ready(told, inputs, segmenter)
        segmentation = segmenter.label(segmenter.compute(ready))
        made = write(segmentation, place, label_scheme=told.label_scheme)
        now = vars(segmenter.engine.identity)
        return Rerun(
            told.scan,
            told.sha256,
            _digest(told.mask) if told.mask.exists() else None,
            str(made.contents["mask"]["sha256"]),
            "" if now == told.engine else f"{told.engine} then, {now} now",
        )


def _one_of(known: Collection[T], value: Any) -> T:  # noqa: ANN401
    """A value that is one of those that are known; else ``ValueError``."""
    return list(known)[list(known).index(value)]


def _place() -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory()
    except OSError as error:
        raise OutputUnwritable(
            "E_OUTPUT", f"no temporary folder can be made: {error}.", "Make room, or set TMPDIR."
        ) from error


def _digest(mask: Path) -> str:
    with open_regular(mask) as file:
        return hashlib.sha256(file.read()).hexdigest()


def _ready(told: _Told, inputs: Sequence[Path], segmenter: Segmenter) -> Ready:
    found = find(inputs, segmenter.spec, kind_of(inputs), **told.finding)
    if told.scan in found.refused:
        raise found.refused[told.scan]
    one = next((one for one in found.scans if one.id == told.scan), None)
    if one is None:
        raise UsageRefused("E_INPUT_MISSING", f"the input holds no scan {told.scan}.", "Name its folder.")
    if one.identity()["inputs"] != told.inputs:
        raise ScanRefused(
            "E_CHECKSUM",
            f"scan {told.scan}: its files are not those of the record.",
            "Give the files of the run.",
        )
    outline = one.outline()
    segmenter.require_room(told.scan, outline)
    return segmenter.ready(one.read(), beside=Beside(outline.beside))
