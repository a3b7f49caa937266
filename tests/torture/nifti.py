"""Damaged NIfTI through brainseg, nibabel and SimpleITK: who reads other voxels than were written?"""

import gzip
import hashlib
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from hostile.nifti import GOOD, HOSTILE, header_for, nifti, voxels
from mutants import mutate

from torture.children import HANG_SECONDS, by_code, ends, in_words, survey
from torture.rows import Row, Setup

__all__ = ["handmade", "listed", "mutants"]

KINDS = {
    "gz": (10_000, "damaged `.nii.gz`: bits flipped, bytes set, cut, dropped, doubled, spliced, swapped"),
    "lies": (2_000, "headers changed before compression, the checksum right"),
    "plain": (2_000, "damaged plain `.nii`, which has no checksum"),
}
READERS = ("brainseg", "nibabel", "simpleitk")
Loaded = tuple[np.ndarray, np.ndarray]


def mutant(kind: str, n: int) -> bytes:
    """The nth damaged file of a kind."""
    rng = random.Random(f"{kind} {n}")
    if kind == "gz":
        return mutate(gzip.compress(_good(), (0, 1, 9)[n % 3], mtime=1), rng)
    if kind == "plain":
        return mutate(_good(), rng)
    content = bytearray(_good())
    for _ in range(rng.randint(1, 2)):
        content[rng.randrange(348)] ^= 1 << rng.randrange(8)
    return gzip.compress(bytes(content), 1, mtime=1)


def _good() -> bytes:
    data = voxels(shape=(24, 24, 20))
    return nifti(data, header_for(data))


def _brainseg(path: Path) -> Loaded:
    from brainseg_runtime.nifti import read_image

    image = read_image(path)
    return image.data, image.geometry.affine


def _nibabel(path: Path) -> Loaded:
    import nibabel

    image = nibabel.load(path)
    return np.asarray(image.dataobj), image.affine


def _simpleitk(path: Path) -> Loaded:
    import SimpleITK

    image = SimpleITK.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image).T, np.diag([-1.0, -1, 1, 1]) @ affine


def trial(reader: str, *counts: str) -> Callable[[int], str]:
    """One damaged file through one reader: its kind, and refused, same, different, or unexpected.

    The trials run through the kinds in turn, as many of each as ``counts`` say.
    """
    from brainseg_runtime.errors import ScanRefused

    read = {"brainseg": _brainseg, "nibabel": _nibabel, "simpleitk": _simpleitk}[reader]
    folder = tempfile.TemporaryDirectory()
    kinds = [kind for kind, count in zip(KINDS, counts, strict=True) for _ in range(int(count))]
    places = {kind: Path(folder.name, f"image{'.nii' if kind == 'plain' else '.nii.gz'}") for kind in KINDS}
    places["plain"].write_bytes(_good())
    voxels_there, affine_there = (array.copy() for array in read(places["plain"]))

    def one(n: int, _: object = folder) -> str:
        kind = kinds[n]
        path = places[kind]
        path.write_bytes(mutant(kind, n))
        try:
            data, affine = read(path)
        except ScanRefused:
            return f"{kind} refused"
        except Exception:  # noqa: BLE001 - the others refuse by whatever they raise
            return f"{kind} {'unexpected' if reader == 'brainseg' else 'refused'}"
        same = data.shape == voxels_there.shape and np.array_equal(data, voxels_there)
        same = same and np.allclose(affine, affine_there, atol=1e-6)
        return f"{kind} {'same' if same else 'different'}"

    return one


def mutants(setup: Setup) -> Iterator[Row]:
    """Every kind of damage through every reader; where there is a checksum, brainseg must see all of it."""
    counts = [setup.count(full, 30) for full, _ in KINDS.values()]
    for reader in READERS:
        found = survey("torture.nifti:trial", 0, sum(counts), reader, *counts)
        for (kind, (_, what)), count in zip(KINDS.items(), counts, strict=True):
            words = in_words(found, kind)
            bad = found[f"{kind} unexpected"] or (kind == "gz" and found["gz different"])
            yield Row(f"{what}: {reader}", f"{count:,}", words, not bad if reader == "brainseg" else None)
        yield ends(found, f"crashes and hangs over {HANG_SECONDS} s in these: {reader}", sum(counts), reader)


def handmade(setup: Setup) -> Iterator[Row]:
    """Every file made by hand ends in its code, and soon."""
    from brainseg_runtime.nifti import read_image

    def trials() -> Iterator[tuple[str, Callable[[], object]]]:
        for n, (code, make) in enumerate(HOSTILE.values()):
            path = setup.place / f"hostile-{n}.nii.gz"
            path.write_bytes(make())
            yield code, partial(read_image, path)

    yield by_code("NIfTI files made by hand", trials())
    yield _places(setup.place)


def _places(place: Path) -> Row:
    """What is no file, or leads out of the folder that was named."""
    from brainseg_runtime.nifti import read_image

    root = place / "input"
    root.mkdir()
    (place / "outside.nii").write_bytes(GOOD)
    os.mkfifo(root / "fifo.nii")
    (root / "folder.nii").mkdir()
    links = {"device": "/dev/zero", "out": place / "outside.nii", "up": "../outside.nii", "loop": "loop.nii"}
    for name, target in links.items():
        (root / f"{name}.nii").symlink_to(target)
    expected = dict.fromkeys(("fifo", "folder", "device", "out", "up"), "E_NOT_FILE")
    expected["loop"] = "E_INPUT_MISSING"
    trials = ((code, partial(read_image, root / f"{name}.nii", root)) for name, code in expected.items())
    return by_code("a fifo, a folder, a device, links that leave the input or loop", trials, within=1)


def listed(setup: Setup) -> Iterator[Row]:
    """What no format tells, a list of checksums does: the same mutants, none read."""
    from brainseg_runtime.checksums import hold, load_checksums
    from brainseg_runtime.errors import ScanRefused
    from brainseg_runtime.scans import find_scans
    from toys import toy_spec

    folder = setup.place / "scans" / "p0"
    folder.mkdir(parents=True)
    for word in ("t1n", "t1c", "t2w", "t2f"):
        (folder / f"p0-{word}.nii").write_bytes(_good())
    digest = hashlib.sha256(_good()).hexdigest()
    sums = folder / "SHA256SUMS"
    sums.write_text("".join(f"{digest}  {path.name}\n" for path in sorted(folder.glob("*.nii"))))
    (scan,) = hold(find_scans(folder, toy_spec()), load_checksums(sums)).scans
    scan.read()
    count, changed, refused = setup.count(2_000, 30), 0, 0
    for n in range(count):
        content = mutant("plain", n) if n % 2 else gzip.decompress(mutant("lies", n))
        changed += content != _good()
        (folder / "p0-t2f.nii").write_bytes(content)
        try:
            scan.read()
        except ScanRefused as error:
            refused += error.code == "E_CHECKSUM"
    found = f"{refused} of {changed} that differ refused"
    yield Row("the same plain files and headers, with `--checksums`", f"{count:,}", found, refused == changed)
