"""What a scan leaves behind: a mask, what else was asked for, a JSON on how it came about, a row in a table.

The JSON is written last: where it stands, the scan is done.
"""

import csv
import hashlib
import io
import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from brainseg_runtime.errors import UsageRefused
from brainseg_runtime.files import remove, write_atomically
from brainseg_runtime.nifti import write_labels
from brainseg_runtime.volume import Segmentation

__all__ = [
    "ATTACHMENTS",
    "DICOM_KINDS",
    "DISCLAIMER",
    "Attachment",
    "AttachmentKind",
    "LabelScheme",
    "Written",
    "attachment_path",
    "coded",
    "is_done",
    "result_path",
    "standing",
    "write",
    "write_table",
]

FORMAT = 1
DISCLAIMER = "Research use only. Not a medical device."

LabelScheme = Literal["brats2023", "brats2021", "regions"]
"""``brats2023``: the model's own labels, ET = 3. ``brats2021``: ET = 4. ``regions``: a 0/1 map a region."""

AttachmentKind = Literal[
    "probabilities", "preview", "gif", "report", "dicom-seg", "dicom-labelmap", "dicom-sr"
]
ATTACHMENTS: Mapping[AttachmentKind, str] = {
    "probabilities": "_prob.nii.gz",
    "preview": "_seg.png",
    "gif": "_seg.gif",
    "report": "_report.html",
    "dicom-seg": "_seg.dcm",
    "dicom-labelmap": "_labelmap.dcm",
    "dicom-sr": "_sr.dcm",
}
"""What can be asked for beside mask and JSON, and how its file's name ends."""
DICOM_KINDS: tuple[AttachmentKind, ...] = ("dicom-seg", "dicom-labelmap", "dicom-sr")
"""Those that refer to a DICOM study."""


@dataclass(frozen=True)
class Attachment:
    """A file beside mask and JSON."""

    kind: AttachmentKind
    save: Callable[[Path, Mapping[str, Any]], str]
    """Writes it, given what the JSON says so far, and returns its SHA-256, which the JSON tells."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What else the JSON says about it."""


@dataclass(frozen=True)
class Written:
    """The files of one scan."""

    mask: Path
    json: Path
    contents: Mapping[str, Any]
    """What the JSON says."""


def write(
    segmentation: Segmentation,
    folder: Path | str,
    *,
    label_scheme: LabelScheme = "brats2023",
    attachments: Sequence[Attachment] = (),
) -> Written:
    """Write ``<scan>_seg.nii.gz`` on the scan's own grid, the attachments, then ``<scan>_seg.json``.

    Attachments of an earlier result that are not made anew are removed: they show another mask.

    Raises:
        OutputUnwritable: ``E_OUTPUT``.
        UsageRefused: ``E_USAGE`` for a scheme that the model's labels do not fit.
    """
    started = time.perf_counter()
    labels, meaning = coded(segmentation, label_scheme)
    mask = result_path(folder, segmentation.scan, ".nii.gz")
    digest = write_labels(mask, labels, segmentation.geometry)
    record = segmentation.record
    seconds = {**record.get("seconds", {}), "write": round(time.perf_counter() - started, 4)}
    contents: dict[str, Any] = {
        "format": FORMAT,
        "scan": segmentation.scan,
        "disclaimer": DISCLAIMER,
        **record,
        "options": {**record.get("options", {}), "label_scheme": label_scheme},
        "software": {"brainseg-runtime": version("brainseg-runtime")},
        "mask": {
            "file": mask.name,
            "sha256": digest,
            "labels": meaning,
        },
        "volumes_ml": {name: round(ml, 4) for name, ml in segmentation.volumes_ml().items()},
        "seconds": seconds,
    }
    _attach(contents, folder, segmentation.scan, attachments)
    path = result_path(folder, segmentation.scan, ".json")
    write_atomically(path, (json.dumps(contents, indent=1) + "\n").encode())
    return Written(mask, path, contents)


def _attach(
    contents: dict[str, Any], folder: Path | str, scan: str, attachments: Sequence[Attachment]
) -> None:
    """Write the attachments and say so in the JSON's contents."""
    for kind in set(ATTACHMENTS) - {attachment.kind for attachment in attachments}:
        remove(attachment_path(folder, scan, kind))
    described: dict[str, Any] = {}
    for attachment in attachments:
        started = time.perf_counter()
        path = attachment_path(folder, scan, attachment.kind)
        digest = attachment.save(path, contents)
        described[attachment.kind] = {"file": path.name, "sha256": digest, **attachment.notes}
        seconds = {**contents["seconds"], attachment.kind: round(time.perf_counter() - started, 4)}
        contents.update(attachments=described, seconds=seconds)


def coded(segmentation: Segmentation, scheme: LabelScheme) -> tuple[NDArray[np.uint8], dict[str, str]]:
    """The voxels of a label scheme and what each value, or each map, stands for.

    Shapes: (I, J, K), or (I, J, K, R) for ``regions``.
    """
    names = dict(segmentation.names)
    match scheme:
        case "brats2023":
            return segmentation.labels, {str(value): name for value, name in names.items()}
        case "brats2021":
            enhancing = [value for value, name in names.items() if name == "ET"]
            if len(enhancing) != 1 or 4 in names:
                raise UsageRefused(
                    "E_USAGE",
                    f"the label scheme brats2021 renumbers ET to 4, the model's labels are {names}.",
                    "Use --label-scheme brats2023, which keeps the model's own labels.",
                )
            renumbered = {4 if value == enhancing[0] else value: name for value, name in names.items()}
            labels = np.where(segmentation.labels == enhancing[0], np.uint8(4), segmentation.labels)
            return labels, {str(value): name for value, name in renumbered.items()}
        case "regions":
            maps = [segmentation.mask(region).astype(np.uint8) for region in segmentation.regions]
            return np.stack(maps, axis=-1), {str(n): name for n, name in enumerate(segmentation.regions)}


def result_path(folder: Path | str, scan: str, suffix: str) -> Path:
    """Where a result of a scan stands, such as ``out/<scan>_seg.nii.gz``."""
    return Path(folder) / f"{scan}_seg{suffix}"


def attachment_path(folder: Path | str, scan: str, kind: AttachmentKind) -> Path:
    """Where an attachment of a scan stands, such as ``out/<scan>_report.html``."""
    return Path(folder) / f"{scan}{ATTACHMENTS[kind]}"


def is_done(
    folder: Path | str, scan: str, expected: Mapping[str, Any], attachments: Collection[AttachmentKind] = ()
) -> bool:
    """Whether a scan's results stand whole, made from the same inputs by the same model and options.

    ``expected`` holds what the JSON must say of ``inputs``, ``model``, ``engine``, ``options``. More
    attachments than are asked for do no harm.
    """
    try:
        found = json.loads(result_path(folder, scan, ".json").read_bytes())
        mask = result_path(folder, scan, ".nii.gz").read_bytes()
        return bool(
            all(found[key] == value for key, value in expected.items())
            and found["mask"]["sha256"] == hashlib.sha256(mask).hexdigest()
            and all(
                found["attachments"][kind]["sha256"]
                == hashlib.sha256(attachment_path(folder, scan, kind).read_bytes()).hexdigest()
                for kind in attachments
            )
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def standing(folder: Path | str, without: Collection[str] = ()) -> tuple[list[dict[str, Any]], list[Path]]:
    """The records in a folder, but those of some scans; and the files that are called as one and are none."""
    records, others = [], []
    for path in sorted(Path(folder).glob("*_seg.json")):
        record = _record(path)
        if record is None:
            others.append(path)
        elif record["scan"] not in without:
            records.append(record)
    return records, others


def _record(path: Path) -> dict[str, Any] | None:
    """What a file says if it is a record, as far as a table and an index need it to be one."""
    try:
        told: dict[str, Any] = json.loads(path.read_bytes())
        sound = (
            path == result_path(path.parent, told["scan"], ".json")
            and all(isinstance(ml, int | float) for ml in told["volumes_ml"].values())
            and isinstance(told["model"].get("sha256", ""), str)
            and isinstance((told.get("type") or {}).get("name", ""), str)
            and all(isinstance(flag["code"], str) for flag in told.get("flags", ()))
            and isinstance(told.get("attachments", {}), dict)
        )
    # The folder is the user's: anything at all may lie in it under such a name.
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return told if sound else None


def write_table(folder: Path | str, records: Sequence[Mapping[str, Any]]) -> Path | None:
    """Write ``volumes.csv``: a row a record, its model, volumes in ml and flags; none without records.

    Raises:
        OutputUnwritable: ``E_OUTPUT``.
    """
    path = Path(folder) / "volumes.csv"
    rows = []
    for record in records:
        model = {"model": record["model"].get("sha256", "")[:12]}
        volumes = {f"{region}_ml": ml for region, ml in record["volumes_ml"].items()}
        kind = {"type": (record["type"] or {}).get("name", "")} if "type" in record else {}
        flags = {"flags": " ".join(dict.fromkeys(flag["code"] for flag in record.get("flags", ())))}
        rows.append({"scan": record["scan"], **model, **volumes, **kind, **flags})
    if not rows:
        if path.exists():
            remove(path)
        return None
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    # A name may hold bytes that are no text.
    write_atomically(path, text.getvalue().encode(errors="backslashreplace"))
    return path
