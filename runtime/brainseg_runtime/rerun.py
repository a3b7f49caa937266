"""A run told by its record, made again: does the same input still give the same mask?"""

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brainseg_runtime.errors import BundleInvalid, ScanRefused, UsageRefused
from brainseg_runtime.inputs import find, kind_of
from brainseg_runtime.memory import MEGABYTE
from brainseg_runtime.outputs import write
from brainseg_runtime.segmenter import Ready, Segmenter, load

__all__ = ["Rerun", "verify_run"]


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


def verify_run(record: Path, inputs: Sequence[Path], model: Sequence[Path]) -> Rerun:
    """Segment a scan again as its ``<scan>_seg.json`` says it was, and compare.

    Raises:
        UsageRefused: ``E_USAGE`` for a record that is none; ``E_INPUT_MISSING`` where the scan is not found.
        BundleInvalid: ``E_RUN_DIFFERS`` for another model than the record's.
        ScanRefused: ``E_CHECKSUM`` for other files than the record's.
    """
    try:
        told = json.loads(record.read_bytes())
        scan, recorded = str(told["scan"]), str(told["mask"]["sha256"])
        options, engine = dict(told["options"]), dict(told["engine"])
        mask = record.with_name(told["mask"]["file"])
        with _opened(told, options, engine, model) as segmenter, tempfile.TemporaryDirectory() as place:
            if segmenter.model != told["model"]:
                raise BundleInvalid(
                    "E_RUN_DIFFERS",
                    f"the run was made by {told['model']}, this model is {segmenter.model}.",
                    "Give the bundle that the record names.",
                )
            ready = _ready(told, scan, inputs, segmenter)
            segmentation = segmenter.label(segmenter.compute(ready))
            made = write(segmentation, place, label_scheme=options["label_scheme"])
            now = vars(segmenter.engine.identity)
            return Rerun(
                scan,
                recorded,
                hashlib.sha256(mask.read_bytes()).hexdigest() if mask.is_file() else None,
                str(made.contents["mask"]["sha256"]),
                "" if now == engine else f"{engine} then, {now} now",
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, BundleInvalid | ScanRefused | UsageRefused):
            raise
        raise UsageRefused(
            "E_USAGE", f"{record} is no record of a run: {error!r}.", "Give a <scan>_seg.json."
        ) from error


def _opened(
    told: dict[str, Any], options: dict[str, Any], engine: dict[str, Any], model: Sequence[Path]
) -> Segmenter:
    """The model on the engine and in the way that a record tells."""
    tiled = options["scheme"] == "tiles"
    return load(
        model,
        engine["engine"],
        precision=engine["precision"],
        device=engine["device"],
        batch=options["batch"],
        tile=options["tile"][0] if tiled and len(set(options["tile"])) == 1 else None,
        overlap=options["overlap"] if tiled else None,
        tta=options.get("tta", False),
        # The plan follows from the limit; just this much gives the same one.
        max_memory=(told["plan"]["expected_memory_mb"] + 1) * MEGABYTE,
    )


def _ready(told: dict[str, Any], scan: str, inputs: Sequence[Path], segmenter: Segmenter) -> Ready:
    kind = kind_of(inputs)
    onto = told["reference"] if told["resample"] else None
    found = find(inputs, segmenter.spec, kind, resample_to=onto, register=told["register"])
    if scan in found.refused:
        raise found.refused[scan]
    one = next((one for one in found.scans if one.id == scan), None)
    if one is None:
        raise UsageRefused("E_INPUT_MISSING", f"the input holds no scan {scan}.", "Name its folder.")
    if one.identity()["inputs"] != told["inputs"]:
        raise ScanRefused(
            "E_CHECKSUM", f"scan {scan}: its files are not those of the record.", "Give the files of the run."
        )
    outline = one.outline()
    segmenter.require_room(scan, outline)
    return segmenter.ready(one.read(), outline=outline)
