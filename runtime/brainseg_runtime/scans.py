"""Find the scans under a folder, one file per modality, and read them as volumes on one grid."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from brainseg_runtime.errors import ScanRefused, UsageRefused
from brainseg_runtime.files import open_regular
from brainseg_runtime.geometry import Geometry
from brainseg_runtime.layouts import IMAGE, Claim, Group, groups_of
from brainseg_runtime.names import ALIASES, Names
from brainseg_runtime.nifti import StoredImage, measure_image, open_image
from brainseg_runtime.outputs import Attachment, AttachmentKind
from brainseg_runtime.resample import GRID_MM, Moved, bring, record_of
from brainseg_runtime.spec import ModelSpec
from brainseg_runtime.volume import Outline, Segmentation, Source, Volume

__all__ = ["ALIASES", "Found", "Match", "Scan", "ScanFile", "explain", "find_scans", "onto", "read"]


@dataclass(frozen=True)
class ScanFile:
    """Where one modality of a scan is."""

    modality: str
    path: Path
    index: int | None = None
    """Of the modality's frame, in a four-dimensional file."""
    frames: int | None = None
    """How many frames such a file must have."""


@dataclass(frozen=True)
class Scan:
    """A patient's MRI: one file per modality."""

    id: str
    files: tuple[ScanFile, ...]
    """In the spec's modality order; an optional modality may have none."""
    reference: str
    """The modality whose grid the others must share."""
    truth: Path | None = None
    """The label image, if exactly one was found."""
    root: Path | None = None
    """The input folder, which links must not leave; None for files that were named one by one."""
    resample: bool = False
    """Whether modalities on other grids are brought onto the reference's; else they are refused."""
    register: bool = False
    """Whether modalities are moved onto the reference first, rigidly."""
    thin: bool = False
    """Whether a few slices or one will do, which show no whole head."""
    modalities: tuple[str, ...] = ()
    """The model's, in order; by default those of the files."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that are read."""
        return tuple(file.path for file in self.files)

    def outline(self) -> Outline:
        """Its size, from the headers of its files.

        Raises:
            ScanRefused: for a header as ``read``.
        """
        files = {file.path: file for file in self.files}
        measured = {
            path: measure_image(path, self.root, frames=file.index is not None, thin=self.thin)
            for path, file in files.items()
        }
        grid, _ = measured[next(file.path for file in self.files if file.modality == self.reference)]
        beside = sum(stored for _, stored in measured.values())
        if self.resample:
            # Two are decoded at a time, each on its own grid; a registration copies both of its images.
            copies = 4 if self.register else 2
            beside += copies * 4 * max(prod(own.shape) for own, _ in measured.values())
        return Outline(grid, beside)

    def read(self) -> Volume:
        """As the function of that name."""
        return read(self)

    def identity(self) -> dict[str, Any]:
        """What a record of this scan must say, so that it speaks of the same bytes read the same way."""
        sources = []
        for file in self.files:
            with open_regular(file.path, self.root) as content:
                digest = hashlib.sha256(content.read()).hexdigest()
            sources.append(vars(Source(file.modality, file.path.name, digest)))
        way = {"resample": self.resample, "register": self.register}
        return {"inputs": sources, "reference": self.reference, **way}

    def attachments(self, kinds: Collection[AttachmentKind], segmentation: Segmentation) -> list[Attachment]:
        """None: a NIfTI file holds nothing that a DICOM object could refer to."""
        return []


@dataclass(frozen=True)
class Match:
    """What one path was taken for, and why."""

    path: Path
    taken_for: str
    """A modality, ``"truth"``, or ``"nothing"``."""
    why: str
    scan: str = ""


@dataclass(frozen=True)
class Found:
    """All that is known of what lies under the inputs."""

    scans: tuple[Scan, ...]
    """Those that are complete, sorted by id."""
    refused: Mapping[str, ScanRefused]
    """Scan id -> why it is not among ``scans``."""
    matches: tuple[Match, ...]
    """One per image file (per frame of a 4-D file), and one per folder that was not entered."""


def find_scans(inputs: Path | str | Sequence[Path | str], spec: ModelSpec) -> Found:
    """Find the scans of a model in folders, at any depth, and among single files.

    Raises:
        ScanRefused: ``E_INPUT_MISSING`` if an input cannot be read, ``E_NO_SCANS`` if no name under
            the inputs says that a file is a modality.
    """
    given = [Path(inputs)] if isinstance(inputs, str | Path) else [Path(entry) for entry in inputs]
    names = Names(spec)
    found: list[tuple[Group, Path | None]] = []
    loose: list[Claim] = []
    for (folder, root), paths in _by_folder(given, loose).items():
        groups, rest = groups_of(folder, paths, names, _folder_id(folder, root))
        found += [(group, root) for group in groups]
        loose += rest
    if not found:
        raise _no_scans(given, spec, loose)
    scans, refused = _complete(found, spec)
    return Found(scans, refused, _matches([group for group, _ in found], loose))


def explain(found: Found, spec: ModelSpec) -> str:
    """What every file was taken for, why, and by which table of words."""
    lines = ["Words in file names (the last ones count; ... stands for any words between):"]
    lines += [f"  {role}: {', '.join(aliases)}" for role, aliases in Names(spec).table.items()]
    lines += ["", "Files:"]
    for match in found.matches:
        scan = f" of scan {match.scan}" if match.scan else ""
        lines.append(f"  {match.path}: {match.taken_for}{scan}, {match.why}")
    lines += ["", f"Scans: {', '.join(scan.id for scan in found.scans) or 'none'}"]
    lines += [f"Refused: {name}: {error}" for name, error in found.refused.items()]
    return "\n".join(lines)


def read(scan: Scan) -> Volume:
    """Read every modality of a scan, (I, J, K, C) in Fortran order, on the reference's grid.

    An optional modality that has no file is 0 everywhere.

    Raises:
        ScanRefused: with the code of the first check that a file does not pass;
            ``E_GEOMETRY_MISMATCH`` names every file that lies on another grid than the reference.
    """
    files = {file.path: file for file in scan.files}
    reference = next(file.path for file in scan.files if file.modality == scan.reference)

    def load(file: ScanFile) -> StoredImage:
        return open_image(file.path, scan.root, frames=file.index is not None, thin=scan.thin)

    # Inflating and decoding both leave Python, so that two threads take two thirds of one's time.
    with ThreadPoolExecutor(max_workers=2, thread_name_prefix="read") as pool:
        images = dict(zip(files, pool.map(load, files.values()), strict=True))
        grid = images[reference].geometry
        if not scan.resample:
            _require_one_grid(scan.id, reference, {path: image.geometry for path, image in images.items()})
        given = {file.modality: file for file in scan.files}
        modalities = scan.modalities or tuple(given)
        data = np.empty((*grid.shape, len(modalities)), np.float32, order="F")

        standing = data[..., modalities.index(scan.reference)]

        def decode(c: int, modality: str) -> Moved | None:
            if modality not in given:
                data[..., c] = 0
                return None
            file = given[modality]
            image = images[file.path]
            _require_frames(file, image.frames)
            return bring(
                lambda out: image.decode(out, file.index or 0),
                image.geometry,
                grid,
                data[..., c],
                file.modality,
                standing if scan.register and modality != scan.reference else None,
            )

        order = sorted(range(len(modalities)), key=lambda c: modalities[c] != scan.reference)
        # What the others are registered to comes first.
        first = [decode(c, modalities[c]) for c in order[:1]]
        moved = first + list(pool.map(lambda c: decode(c, modalities[c]), order[1:]))
    sources = [Source(file.modality, file.path.name, images[file.path].sha256) for file in scan.files]
    way = {"resample": scan.resample, "register": scan.register}
    record = {"reference": scan.reference, **way, **record_of(moved)}
    absent = tuple(modality for modality in modalities if modality not in given)
    return Volume(data, grid, scan.id, tuple(sources), record, absent)


def onto(found: Found, modality: str, register: bool = False) -> Found:
    """The same scans, to be read on the grid of a modality, with the others resampled onto it.

    ``register``: they are moved onto it first.

    Raises:
        UsageRefused: ``E_USAGE`` for a modality that the scans do not have.
    """
    for scan in found.scans:
        if modality not in {file.modality for file in scan.files}:
            raise UsageRefused("E_USAGE", f"{modality} is no modality of the model.", "Name one that is.")
    scans = tuple(replace(scan, reference=modality, resample=True, register=register) for scan in found.scans)
    return replace(found, scans=scans)


def _by_folder(inputs: Iterable[Path], loose: list[Claim]) -> dict[tuple[Path, Path | None], list[Path]]:
    """(Folder, input it lies under) -> its image files, each once; appends to ``loose`` what it left."""
    folders: dict[tuple[Path, Path | None], list[Path]] = defaultdict(list)
    seen = set()
    for path, root in _images(inputs, loose):
        folder = path.parent.resolve()
        if folder / path.name not in seen:
            seen.add(folder / path.name)
            folders[folder, root].append(path)
    return folders


def _images(inputs: Iterable[Path], loose: list[Claim]) -> Iterator[tuple[Path, Path | None]]:
    for entry in inputs:
        try:
            entry.stat()
        except OSError as error:
            raise ScanRefused(
                "E_INPUT_MISSING", f"{entry} cannot be read: {error.strerror}.", "Check the path."
            ) from error
        if entry.is_dir():
            yield from ((path, entry) for path in _walk(entry, loose))
        elif IMAGE.fullmatch(entry.name):
            yield entry, None
        else:
            raise ScanRefused("E_NO_SCANS", f"{entry} is no .nii or .nii.gz file.", "Convert it to NIfTI.")


def _walk(root: Path, loose: list[Claim]) -> Iterator[Path]:
    """The image files under a folder, in the order of their names; hidden ones do not count."""

    def unreadable(error: OSError) -> None:
        if Path(error.filename) == root:
            raise ScanRefused("E_INPUT_MISSING", f"{root} cannot be read: {error}.", "Check its rights.")
        loose.append(Claim(Path(error.filename), "nothing", f"cannot be read: {error.strerror}"))

    for place, folders, files in os.walk(root, onerror=unreadable):
        folder = Path(place)
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        loose += [
            Claim(folder / name, "nothing", "a link to a folder, which is not followed")
            for name in folders
            if (folder / name).is_symlink()
        ]
        yield from (folder / name for name in sorted(files) if IMAGE.fullmatch(name) and not _is_hidden(name))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _folder_id(folder: Path, root: Path | None) -> str:
    """The id of a scan whose files' names share nothing: its path under the input, or the input's name."""
    parts = folder.relative_to(root.resolve()).parts if root else ()
    return "_".join(parts) or folder.name or "scan"


def _complete(
    found: Sequence[tuple[Group, Path | None]], spec: ModelSpec
) -> tuple[tuple[Scan, ...], dict[str, ScanRefused]]:
    """The scans, and a refusal for each group that is none."""
    # Where a file system does not tell capitals, P1 and p1 are written under one name too.
    doubled = {name for name, n in Counter(group.id.casefold() for group, _ in found).items() if n > 1}
    scans, refused = [], {}
    for group, root in found:
        try:
            if group.id.casefold() in doubled:
                raise _scan_doubled(group.id, [other for other, _ in found])
            scans.append(_scan(group, root, spec))
        except ScanRefused as error:
            refused[group.id] = error
    return tuple(sorted(scans, key=lambda scan: scan.id)), dict(sorted(refused.items()))


def _scan(group: Group, root: Path | None, spec: ModelSpec) -> Scan:
    if group.refusal:
        raise group.refusal
    claims: dict[str, list[Claim]] = defaultdict(list)
    for claim in group.claims:
        claims[claim.role].append(claim)
    files = []
    for modality in spec.modalities:
        if len(claims[modality.name]) > 1:
            raise _modality_doubled(group.id, modality.name, claims[modality.name])
        files += [ScanFile(modality.name, c.path, c.index, c.frames) for c in claims[modality.name]]
    found = {file.modality for file in files}
    if not Names(spec).required <= found:
        raise _modality_missing(group, found, spec)
    truths = claims["truth"]
    truth = truths[0].path if len(truths) == 1 else None
    modalities = tuple(modality.name for modality in spec.modalities)
    return Scan(group.id, tuple(files), spec.reference, truth, root, thin=spec.thin, modalities=modalities)


def _matches(groups: Iterable[Group], loose: Iterable[Claim]) -> tuple[Match, ...]:
    held = [Match(c.path, c.role, c.why, group.id) for group in groups for c in group.claims]
    # The truth that a scan found in a folder of labels was met there too.
    known = {match.path.resolve() for match in held}
    rest = [Match(c.path, c.role, c.why) for c in loose if c.path.resolve() not in known]
    return tuple(sorted([*held, *rest], key=lambda match: match.path))


def _require_one_grid(scan: str, reference: Path, grids: Mapping[Path, Geometry]) -> None:
    grid = grids[reference]
    apart = [
        f"{path.name} ({_in_words(other)}) is up to {_corner_distance(other, grid):.4g} mm away from "
        f"{reference.name} ({_in_words(grid)})"
        for path, other in grids.items()
        if not other.distance(grid) <= GRID_MM
    ]
    if apart:
        raise ScanRefused(
            "E_GEOMETRY_MISMATCH",
            f"scan {scan}: {'; '.join(apart)}.",
            f"Bring all onto the grid of {reference.name}: --resample-to and its modality, and --register "
            "if the patient moved between them.",
        )


def _in_words(grid: Geometry) -> str:
    shape = "x".join(str(n) for n in grid.shape)
    spacing = "x".join(f"{mm:.4g}" for mm in grid.spacing)
    return f"{shape} voxels of {spacing} mm, {grid.orientation}"


def _corner_distance(one: Geometry, other: Geometry) -> float:
    """Largest distance between equal corners in mm, whatever the shapes."""
    return float(np.linalg.norm(one.corners() - other.corners(), axis=1).max())


def _require_frames(file: ScanFile, frames: int) -> None:
    if file.frames is not None and file.frames != frames:
        raise ScanRefused(
            "E_DATASET_JSON",
            f"{file.path.name} has {frames} frames, its dataset.json names {file.frames} channels.",
            "Name every channel in dataset.json.",
        )


def _no_scans(inputs: Sequence[Path], spec: ModelSpec, loose: Sequence[Claim]) -> ScanRefused:
    wanted = ", ".join(modality.name for modality in spec.modalities)
    seen = [f"{claim.path.name} ({claim.why})" for claim in loose]
    return ScanRefused(
        "E_NO_SCANS",
        f"no .nii or .nii.gz file under {', '.join(map(str, inputs)) or 'no input'} is named as one of "
        f"{wanted}. Seen: {', '.join(seen[:8]) or 'none'}{', ...' if len(seen) > 8 else ''}.",
        "Name the files as <scan>_t1.nii.gz and so on; --explain-matching shows the words.",
    )


def _scan_doubled(scan: str, groups: Iterable[Group]) -> ScanRefused:
    folders = [str(group.claims[0].path.parent) for group in groups if group.id.casefold() == scan.casefold()]
    return ScanRefused(
        "E_SCAN_DOUBLED",
        f"several scans are called {scan}: in {', '.join(folders)}.",
        "Rename their files, or run them one by one into folders of their own.",
    )


def _modality_doubled(scan: str, modality: str, claims: Sequence[Claim]) -> ScanRefused:
    files = " and ".join(f"{claim.path.name} ({claim.why})" for claim in claims)
    return ScanRefused(
        "E_MODALITY_DOUBLED",
        f"scan {scan}: {files} both are {modality}.",
        "Leave one of them, or rename the other.",
    )


def _modality_missing(group: Group, found: set[str], spec: ModelSpec) -> ScanRefused:
    missing = [
        modality for modality in spec.modalities if modality.name not in found and not modality.optional
    ]
    images = [claim for claim in group.claims if claim.role != "truth"]
    seen = ", ".join(f"{claim.role} ({claim.path.name}, {claim.why})" for claim in images)
    table = Names(spec).table
    expected = "; ".join(f"{m.name}: {', '.join(table[m.name][:4])}" for m in missing)
    return ScanRefused(
        "E_MODALITY_MISSING",
        f"scan {group.id} lacks {', '.join(modality.name for modality in missing)}. Found: {seen}.",
        f"Expected words in the file's name: {expected}.",
    )
