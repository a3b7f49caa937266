"""Damaged DICOM through the whole way from files to voxels, in every transfer syntax; SimpleITK beside it."""

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from dicoms import Grid, Made, save, series
from hostile.dicom import ARCHIVES, FAULTS, FILES, mutant
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)

from torture.children import HANG_SECONDS, by_code, ends, in_words, survey
from torture.rows import Row, Setup

__all__ = ["handmade", "mutants"]

SMALL = Grid(rows=16, columns=16, slices=8)
SOURCES = {
    "implicit": Made(grid=SMALL, syntax=ImplicitVRLittleEndian),
    "explicit": Made(grid=SMALL, syntax=ExplicitVRLittleEndian),
    "big-endian": Made(grid=SMALL, syntax=ExplicitVRBigEndian),
    "deflated": Made(grid=SMALL, syntax=DeflatedExplicitVRLittleEndian),
    "enhanced": Made(grid=SMALL, enhanced=True),
    # Decoded in a child process for each series, so there are fewer of them.
    "RLE": Made(grid=SMALL, syntax=RLELossless),
    "JPEG-LS": Made(grid=SMALL, syntax=JPEGLSLossless),
}
FULL = {name: 800 if name in ("RLE", "JPEG-LS") else 3_680 for name in SOURCES}


def _brainseg(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    from brainseg_runtime.dicom.archive import files_in
    from brainseg_runtime.dicom.pixels import load
    from brainseg_runtime.dicom.series import group
    from brainseg_runtime.dicom.stack import fill, plan
    from brainseg_runtime.errors import ScanRefused

    studies = group(files_in(folder)).studies
    left = [one for study in studies if study.refusal is None for one in study.series]
    if len(left) != 1 or len(studies) != 1:  # what belongs elsewhere by its header lacks the rest there
        raise ScanRefused("E_MODALITY_MISSING", f"{len(left)} series.", "")
    (one,) = left
    way = plan(one)
    voxels = np.empty(way.geometry.shape, np.float32, order="F")
    fill(voxels, one, way, load(one).datasets)
    return voxels, way.geometry.affine


def _simpleitk(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    import SimpleITK

    reader = SimpleITK.ImageSeriesReader()
    (uid,) = reader.GetGDCMSeriesIDs(str(folder))
    names = reader.GetGDCMSeriesFileNames(str(folder), uid)
    reader.SetFileNames(names)
    # Of one file with many frames it would make a volume of four dimensions.
    image = SimpleITK.ReadImage(names[0]) if len(names) == 1 else reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image).T, affine


def trial(reader: str, *counts: str) -> Callable[[int], str]:
    """A series of which one file is damaged, through one reader: its source, and what became of it."""
    import warnings

    from brainseg_runtime.errors import ScanRefused

    warnings.simplefilter("ignore")
    read = {"brainseg": _brainseg, "simpleitk": _simpleitk}[reader]
    folder = tempfile.TemporaryDirectory()
    sources = [source for source, count in zip(SOURCES, counts, strict=True) for _ in range(int(count))]
    good = {}
    for source, made in SOURCES.items():
        place = save(series(made), Path(folder.name, source))
        paths = sorted(place.iterdir())
        array, affine = read(place)
        good[source] = place, paths, [path.read_bytes() for path in paths], array.copy(), affine.copy()

    def one(n: int, _: object = folder) -> str:
        source = sources[n]
        place, paths, files, array, affine = good[source]
        rng = np.random.default_rng(n)
        hit = int(rng.integers(len(paths)))
        paths[hit].write_bytes(mutant(files[hit], rng))
        try:
            data, placed = read(place)
        except ScanRefused:
            return f"{source} refused"
        except Exception:  # noqa: BLE001 - the others refuse by whatever they raise
            return f"{source} {'unexpected' if reader == 'brainseg' else 'refused'}"
        finally:
            paths[hit].write_bytes(files[hit])
        same = data.shape == array.shape and np.array_equal(data, array)
        return f"{source} {'same' if same and np.allclose(placed, affine, atol=1e-6) else 'different'}"

    return one


def mutants(setup: Setup) -> Iterator[Row]:
    """Refused by a code, or read; what is read differently is counted, since DICOM has no checksum."""
    for reader, part in (("brainseg", 1), ("simpleitk", 20)):
        # SimpleITK hangs on many deflated files, each is waited for: it takes a twentieth, the suite none.
        if part > 1 and setup.share < 0.02:
            return
        counts = [setup.count(FULL[source] // part, 4) for source in SOURCES]
        found = survey("torture.dicom:trial", 0, sum(counts), reader, *counts)
        for source, count in zip(SOURCES, counts, strict=True):
            held = not found[f"{source} unexpected"] if reader == "brainseg" else None
            yield Row(
                f"damaged DICOM series, {source}: {reader}", f"{count:,}", in_words(found, source), held
            )
        yield ends(found, f"crashes and hangs over {HANG_SECONDS} s in these: {reader}", sum(counts), reader)


def handmade(setup: Setup) -> Iterator[Row]:
    """Series that are no stack, files and archives that are no study, by their codes."""
    from brainseg_runtime.dicom.rules import load_rules
    from brainseg_runtime.dicom.study import find_studies
    from toys import toy_spec

    def faulty() -> Iterator[tuple[str, Callable[[], object]]]:
        for n, (fault, code) in enumerate(FAULTS.values()):
            yield code, partial(_whole, save(fault(series(Made())), setup.place / f"fault-{n}"))

    def archives() -> Iterator[tuple[str, Callable[[], object]]]:
        for n, (write, code) in enumerate(ARCHIVES.values()):
            path = write(setup.place / f"archive-{n}.zip")
            yield code, partial(find_studies, [path], toy_spec(), load_rules(None))

    def files() -> Iterator[tuple[str, Callable[[], object]]]:
        for n, (content, code) in enumerate(FILES.values()):
            path = setup.place / f"file-{n}.dcm"
            path.write_bytes(content())
            yield code, partial(_refused, path)

    def _refused(path: Path) -> None:
        (refusal,) = find_studies([path], toy_spec(), load_rules(None)).refused.values()
        raise refusal

    yield by_code("DICOM series made by hand", faulty())
    yield by_code("DICOM files made by hand: deflated bombs behind all that may hide one, cut off", files())
    yield by_code(
        "archives: climbing, absolute, with a drive, bombs, nameless, of one name, encrypted, tar", archives()
    )


def _whole(place: Path) -> None:
    from brainseg_runtime.dicom.archive import files_in
    from brainseg_runtime.dicom.pixels import load
    from brainseg_runtime.dicom.series import group
    from brainseg_runtime.dicom.stack import fill, plan

    (found,) = group(files_in(place)).studies
    if found.refusal is not None:
        raise found.refusal
    (one,) = found.series
    way = plan(one)
    fill(np.empty(way.geometry.shape, np.float32, order="F"), one, way, load(one).datasets)
