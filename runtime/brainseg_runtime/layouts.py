"""Which image files of a folder belong to one scan: by their names, or by a dataset.json."""

import json
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from brainseg_runtime.errors import ScanRefused
from brainseg_runtime.files import open_regular
from brainseg_runtime.names import Names, Reading, words

__all__ = ["IMAGE", "Claim", "Group", "groups_of"]

IMAGE = re.compile(r"(.+?)(\.nii(?:\.gz)?)", re.IGNORECASE)

_NUMBERED = re.compile(r"(.+)_(\d{4})")
"""nnU-Net's names: the scan, and the number of the channel."""
_JSON_BYTES = 1 << 20


@dataclass(frozen=True)
class Claim:
    """That a file is one modality of a scan, its truth, or nothing that brainseg uses."""

    path: Path
    role: str
    """A modality, ``"truth"``, or ``"nothing"``."""
    why: str
    index: int | None = None
    """Of the modality's frame, in a four-dimensional file."""
    frames: int | None = None
    """How many frames such a file must have."""


@dataclass
class Group:
    """The files of one scan."""

    id: str
    claims: list[Claim] = field(default_factory=list)
    refusal: ScanRefused | None = None


def groups_of(
    folder: Path, paths: Sequence[Path], names: Names, folder_id: str
) -> tuple[list[Group], list[Claim]]:
    """The scans among the images of one folder, and the images that belong to none.

    A scan is called by what its files' names share, or ``folder_id`` where they share nothing.
    """
    dataset = next((at for at in (folder, folder.parent) if (at / "dataset.json").is_file()), None)
    if dataset and folder.name.lower().startswith("labels"):
        return [], [Claim(path, "nothing", "in a folder of labels") for path in paths]
    unnamed = [path for path in paths if _needs_dataset(path, folder, dataset, names)]
    groups = _dataset_groups(unnamed, folder, dataset, names) if unnamed else []
    readings = {path: names.read(_stem(path)) for path in paths if path not in unnamed}
    more, loose = _named_groups(readings, folder, names, folder_id)
    return groups + more, loose


def _stem(path: Path) -> str:
    match = IMAGE.fullmatch(path.name)
    return match[1] if match else path.stem


# By a dataset.json: nnU-Net, and the four-dimensional files of the Medical Segmentation Decathlon.


def _needs_dataset(path: Path, folder: Path, dataset: Path | None, names: Names) -> bool:
    """Whether only a dataset.json can say what an image is."""
    stem = _stem(path)
    numbered = _NUMBERED.fullmatch(stem)
    if dataset:
        is_image = dataset == folder or folder.name.lower().startswith("images")
        return bool(numbered) or (is_image and names.read(stem) is None)
    if not numbered or names.read(stem):
        return False
    # Without a dataset.json, a number stands for a channel only if there is a first channel.
    return path.with_name(path.name.replace(stem, f"{numbered[1]}_0000")).exists()


def _dataset_groups(paths: Sequence[Path], folder: Path, dataset: Path | None, names: Names) -> list[Group]:
    channels: Mapping[int, str] = {}
    refusal = None
    try:
        channels = _channels(dataset, paths[0])
    except ScanRefused as error:
        refusal = error
    groups: dict[str, Group] = {}
    for path in paths:
        numbered = _NUMBERED.fullmatch(_stem(path))
        scan = numbered[1] if numbered else _stem(path)
        group = groups.setdefault(scan, Group(scan, _dataset_truth(path, scan, folder), refusal))
        if numbered:
            group.claims.append(_channel(path, int(numbered[2]), channels, names))
        elif channels:
            group.claims.extend(_channel(path, n, channels, names, len(channels)) for n in channels)
        else:
            group.claims.append(Claim(path, "nothing", "no dataset.json names its channels"))
    return list(groups.values())


def _channels(dataset: Path | None, image: Path) -> dict[int, str]:
    """Number -> name of the channels that a dataset.json names."""
    if dataset is None:
        raise ScanRefused(
            "E_DATASET_JSON",
            f"{image.name} has a channel number, and no dataset.json says what the channels are.",
            "Put the dataset.json that the numbers belong to into the folder or the one above it.",
        )
    try:
        with open_regular(dataset / "dataset.json") as file:
            if os.fstat(file.fileno()).st_size > _JSON_BYTES:
                raise ValueError(f"it is larger than {_JSON_BYTES} bytes")
            contents = json.loads(file.read())
        named = contents.get("channel_names") or contents["modality"]
        pairs = named.items() if isinstance(named, dict) else enumerate(named)
        channels = {int(number): str(name) for number, name in pairs}
        if sorted(channels) != list(range(len(channels))):
            raise ValueError(f"channels are not numbered from 0: {sorted(channels)}")
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        raise ScanRefused(
            "E_DATASET_JSON",
            f"{dataset / 'dataset.json'} does not name the channels: {type(error).__name__}: {error}.",
            'Give it "channel_names", such as {"0": "T1", "1": "T1ce"}.',
        ) from error
    return channels


def _channel(
    path: Path, number: int, channels: Mapping[int, str], names: Names, frames: int | None = None
) -> Claim:
    """What a dataset.json makes of one channel; ``frames`` says that it is one of a 4-D file."""
    name = channels.get(number)
    if name is None:
        return Claim(path, "nothing", f"no dataset.json names channel {number}")
    reading = names.read(name)
    role = reading.role if reading and reading.role not in ("truth", "other") else "nothing"
    why = f"dataset.json calls channel {number} {name!r}"
    return Claim(path, role, why, None if frames is None else number, frames)


def _dataset_truth(path: Path, scan: str, folder: Path) -> list[Claim]:
    """The label image in the folder of labels beside a folder of images."""
    if not folder.name.lower().startswith("images"):
        return []
    labels = folder.with_name("labels" + folder.name[len("images") :])
    truth = labels / (scan + path.name[len(_stem(path)) :])
    return [Claim(truth, "truth", f"the same name in {labels.name}")] if truth.is_file() else []


# By names: BraTS of all years, BIDS, and folders of bare names.


@dataclass(frozen=True)
class _Part:
    """Images that belong to one scan."""

    id: str
    paths: tuple[Path, ...]
    is_prefix: bool = True
    """Whether the id stands at the start of the files' names, or anywhere in them."""

    def claims(self, truth: str, before: str) -> bool:
        """Whether the scan is the one that a label image's name speaks of."""
        own = words(self.id)
        return words(before)[: len(own)] == own if self.is_prefix else _holds(words(truth), own)


def _named_groups(
    readings: Mapping[Path, Reading | None], folder: Path, names: Names, folder_id: str
) -> tuple[list[Group], list[Claim]]:
    modal = {path: r for path, r in readings.items() if r and r.role not in ("truth", "other")}
    parts = _parts(modal, folder, names)
    groups = [
        Group(part.id or folder_id, [Claim(path, modal[path].role, _why(modal[path])) for path in part.paths])
        for part in parts
    ]
    loose = []
    for path, reading in readings.items():
        if reading is None:
            loose.append(Claim(path, "nothing", "no word of the table"))
        elif reading.role == "other":
            loose.append(Claim(path, "nothing", _why(reading)))
        elif reading.role == "truth" and _is_result(path):
            loose.append(Claim(path, "nothing", "a result of brainseg, its .json stands beside it"))
        elif reading.role == "truth":
            fitting = [n for n, part in enumerate(parts) if part.claims(_stem(path), reading.before)]
            longest = max((len(parts[n].id) for n in fitting), default=0)
            owners = [groups[n].claims for n in fitting if len(parts[n].id) == longest]
            claim = Claim(path, "truth", _why(reading))
            (owners[0] if len(owners) == 1 else loose).append(claim)
    return groups, loose


def _parts(modal: Mapping[Path, Reading], folder: Path, names: Names) -> list[_Part]:
    """The modalities in one folder, sorted by scan."""
    patient = _patient_of(modal, folder, names)
    if patient:
        return [_Part(patient, tuple(modal), is_prefix=False)]
    before: dict[str, list[Path]] = defaultdict(list)
    behind: dict[str, list[Path]] = defaultdict(list)
    for path, reading in modal.items():
        before[reading.before.casefold()].append(path)
        if not reading.before:
            behind[reading.behind.casefold()].append(path)
    # t1_P1, t2_P1, t1_P2 ...: the scan stands behind, if that makes any scan complete.
    turned = len(behind) > 1 and any(
        names.required <= {modal[path].role for path in paths} for paths in behind.values()
    )
    parts = [
        _Part(modal[paths[0]].before, tuple(paths)) for scan, paths in before.items() if scan or not turned
    ]
    if turned:
        parts += [_Part(modal[paths[0]].behind, tuple(paths), is_prefix=False) for paths in behind.values()]
    return parts


def _patient_of(modal: Mapping[Path, Reading], folder: Path, names: Names) -> str:
    """The patient that a whole folder belongs to although its names begin differently; else empty.

    Scanners' names such as ``AX_T1_SE_P7_3``, ``AX_FLAIR_P7_12`` differ in more than the modality. They
    are one scan if they hold every modality once, and all hold the name of the folder or of the one
    above it, which is a patient's (it has a digit), and nothing in them looks like a second patient.
    """
    roles = [reading.role for reading in modal.values()]
    if len(set(roles)) < len(roles) or not names.required <= set(roles):
        return ""
    if len({reading.before.casefold() for reading in modal.values()}) == 1:
        return ""
    modality_words = {word for aliases in names.table.values() for alias in aliases for word in words(alias)}
    spoken = [words(_stem(path)) for path in modal]
    plain = [[word for word in said if word not in modality_words] for said in spoken]
    for at in (folder, folder.parent):
        patient = words(at.name)
        if (
            _has_digit(at.name)
            and all(_holds(said, patient) for said in spoken)
            and not any(_two_patients(one, other, patient) for one, other in combinations(plain, 2))
        ):
            return at.name
    return ""


def _two_patients(one: Sequence[str], other: Sequence[str], shared: Sequence[str]) -> bool:
    """Whether names that share some words first differ in numbers that may be patients'.

    In names of one form any number may be one; else one that stands right behind what they share.
    """
    differing = (n for n, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])
    n = next(differing, None)
    if n is None or not (_has_digit(one[n]) and _has_digit(other[n])):
        return False
    return len(one) == len(other) or tuple(one[max(0, n - len(shared)) : n]) == tuple(shared)


def _has_digit(text: str) -> bool:
    return any(sign.isdigit() for sign in text)


def _holds(said: Sequence[str], run: Sequence[str]) -> bool:
    """Whether words stand in a text in this order, side by side."""
    return any(tuple(said[n : n + len(run)]) == tuple(run) for n in range(len(said) - len(run) + 1))


def _is_result(path: Path) -> bool:
    """Whether a label image was written by brainseg, whose record then stands beside it."""
    stem = _stem(path)
    return stem.endswith("_seg") and path.with_name(f"{stem}.json").is_file()


def _why(reading: Reading) -> str:
    return f"by {reading.alias!r}"
