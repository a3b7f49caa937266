"""The store: the same tiles as ever, whole or not there, shared by processes, in flat memory."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import h5py
import nibabel
import numpy as np
import pytest
from brainseg_runtime.errors import OutputUnwritable, ScanRefused, UsageRefused
from brainseg_runtime.nifti import read_labels, write_labels
from brainseg_runtime.scans import read
from brainseg_runtime.spec import ModelSpec
from brainseg_trainer.cli import app
from brainseg_trainer.config import load
from brainseg_trainer.dataset import draw_batch, find_training_scans, prepare_examples
from brainseg_trainer.figshare import import_slices
from brainseg_trainer.label_names import named_table
from brainseg_trainer.sources import open_data
from brainseg_trainer.store import Origin, Store, folds_of, write_store
from brainseg_trainer.task import glioma_spec
from figshare_files import write_download
from toys import toy_volume, write_scan
from typer.testing import CliRunner

COARSE = """
[network]
depth = 4
[data]
spacing = [1.0, 1.0, 1.0]
tile = [16, 16, 16]
"""


def quiet(*_):
    """A report that nobody reads."""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "coarse.toml"
    path.write_text(COARSE)
    return path


def write_brats(folder, count=6):
    """Toy scans under BraTS names, truth with all labels of 2023 included."""
    for n in range(count):
        volume = toy_volume(seed=n)
        name = f"BraTS-GLI-{n // 2:05d}-{n % 2:03d}"
        write_scan(folder / name, volume)
        labels = np.zeros(volume.geometry.shape, np.uint8)
        labels[6:14, 7 + n : 15, 5:12] = 2
        labels[8:11, 10:13, 7:9] = 1
        labels[8:11, 10:13, 9:11] = 3
        write_labels(folder / name / f"{name}-seg.nii.gz", labels, volume.geometry)
    return folder


@pytest.fixture(scope="module")
def brats(tmp_path_factory):
    return write_brats(tmp_path_factory.mktemp("brats"))


def make(folder, path, config):
    found = open_data(folder, load(str(config)))
    return write_store(path, found.scans, folder, found.spec, found.origins, quiet)


@pytest.fixture(scope="module")
def store(brats, config, tmp_path_factory):
    return make(brats, tmp_path_factory.mktemp("store") / "x.h5", config)


def test_tiles_are_the_same_from_a_store(store, brats, config, tmp_path):
    """A step sees exactly what it would see without a store."""
    settings = load(str(config))
    spec = glioma_spec(settings, (1, 1, 1))
    source = find_training_scans(brats, spec)
    plain = prepare_examples(source, source.scans, spec, tmp_path / "cache", quiet)
    stored = store.examples([scan.id for scan in source.scans])
    for step in range(4):
        for one, other in zip(
            draw_batch(plain, spec, settings, step), draw_batch(stored, spec, settings, step), strict=True
        ):
            np.testing.assert_array_equal(one, other)


def test_a_store_says_what_it_holds(store, brats):
    """Specification, patients, folds, shapes and the hash of every file, truth included, are inside."""
    assert [scan.id for scan in store.scans] == sorted(path.name for path in brats.iterdir())
    assert store.source == brats
    for scan in store.scans:
        assert scan.id.startswith(scan.patient)
        assert len(scan.sources) == 5
        assert all(len(digest) == 64 for digest in scan.sources.values())
    assert len({(scan.patient, scan.fold) for scan in store.scans}) == 3
    training, held = store.fold(store.scans[0].fold)
    assert set(held) == {scan.id for scan in store.scans if scan.patient == store.scans[0].patient}
    assert set(training) | set(held) == {scan.id for scan in store.scans}
    with pytest.raises(UsageRefused):
        store.fold(9)


READER = """
import sys
from pathlib import Path
import numpy as np
from brainseg_trainer.config import load
from brainseg_trainer.dataset import draw_batch
from brainseg_trainer.store import Store
from brainseg_trainer.task import glioma_spec

store, settings = Store.open(Path(sys.argv[1])), load(sys.argv[2])
examples = store.examples([scan.id for scan in store.scans])
batches = [draw_batch(examples, glioma_spec(settings, (1, 1, 1)), settings, step)[0] for step in range(12)]
print(np.stack(batches).sum(dtype=np.float64))
"""


def test_several_processes_read_one_store(store, config):
    """Three processes at once, one of which has the file open already, draw the same."""
    command = [sys.executable, "-c", READER, str(store.path), str(config)]
    with h5py.File(store.path, "r"):
        running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        examples = store.examples([scan.id for scan in store.scans])
        settings = load(str(config))
        spec = glioma_spec(settings, (1, 1, 1))
        batches = [draw_batch(examples, spec, settings, step)[0] for step in range(12)]
        expected = f"{np.stack(batches).sum(dtype=np.float64)}\n"
        assert [process.communicate(timeout=60)[0] for process in running] == [expected] * 2


KILLED = """
import os, signal, sys
from pathlib import Path
from brainseg_trainer.config import load
from brainseg_trainer.sources import open_data
from brainseg_trainer.store import write_store

def kill(done, total):
    if done == 2:
        os.kill(os.getpid(), signal.SIGKILL)

folder = Path(sys.argv[1])
found = open_data(folder, load(sys.argv[3]))
write_store(Path(sys.argv[2]), found.scans, folder, found.spec, found.origins, kill)
"""


def test_a_killed_import_leaves_nothing_that_looks_whole(brats, config, tmp_path):
    """SIGKILL after two of six scans: no store by its name, the rest is refused, another import works."""
    path = tmp_path / "x.h5"
    command = [sys.executable, "-c", KILLED, str(brats), str(path), str(config)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert not path.exists()
    (left,) = tmp_path.glob(".brainseg-*.part")
    with pytest.raises(ScanRefused) as refusal:
        Store.open(left)
    assert refusal.value.code == "E_STORE"
    assert len(make(brats, path, config).scans) == 6


MEMORY = """
import resource, sys
from dataclasses import dataclass
from pathlib import Path
import numpy as np
from brainseg_runtime.geometry import Geometry
from brainseg_runtime.scans import Scan
from brainseg_runtime.volume import Volume
from brainseg_trainer.config import load
from brainseg_trainer.dataset import draw_batch
from brainseg_trainer.store import write_store
from brainseg_trainer.task import glioma_spec

class Source:
    thin = False
    scans = tuple(Scan(f"P{n}", (), "t1c") for n in range(20))
    def read(self, scan):
        data = np.random.default_rng(int(scan.id[1:])).normal(100, 9, (64, 64, 64, 4)).astype(np.float32)
        return Volume(data, Geometry((64, 64, 64), np.eye(4)), scan.id)
    def truth(self, scan, grid):
        labels = np.zeros(grid.shape, np.uint8)
        labels[20:40, 20:40, 20:40] = 2
        return labels

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

peaks = []
settings = load(sys.argv[2])
spec = glioma_spec(settings, (1, 1, 1))
report = lambda done, total: peaks.append(peak())
store = write_store(Path(sys.argv[1]), Source(), Path("."), spec, {}, report)
examples = store.examples([scan.id for scan in store.scans])
for step in range(60):
    draw_batch(examples, spec, settings, step)
print(peaks[3], peaks[-1], peak(), Path(sys.argv[1]).stat().st_size / 2**20)
"""


def test_memory_is_flat_however_large_the_store(tmp_path, config):
    """Twenty scans of 4 MB are written, and 60 batches drawn from them, in the memory of the first four."""
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "x.h5"), str(config)]
    after_four, written, drawn, size = map(float, subprocess.check_output(command, text=True).split())
    assert size > 50
    assert written - after_four < 12
    assert drawn - after_four < 16


def test_a_scan_that_cannot_be_used_is_named_and_the_rest_stored(tmp_path, config):
    """A damaged image costs one scan; the verb ends with 4 and says which."""
    folder = write_brats(tmp_path / "scans", 3)
    broken = folder / "BraTS-GLI-00001-000" / "BraTS-GLI-00001-000-t2f.nii.gz"
    broken.write_bytes(broken.read_bytes()[:2000])
    arguments = ["store", str(folder), "-o", str(tmp_path / "x.h5"), "--config", str(config)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 4
    assert "BraTS-GLI-00001-000: E_TRUNCATED" in result.output
    store = Store.open(tmp_path / "x.h5")
    assert len(store.scans) == 2
    assert list(store.refused) == ["BraTS-GLI-00001-000"]


def test_nothing_usable_is_no_store(tmp_path, config):
    """Where every scan is refused, the refusal is the answer and no file is left."""
    folder = write_brats(tmp_path / "scans", 1)
    for path in folder.glob("*/*-t1c.nii.gz"):
        path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ScanRefused):
        make(folder, tmp_path / "out" / "x.h5", config)
    assert not list((tmp_path / "out").iterdir())


def test_a_store_is_not_written_over(store, brats, config):
    """What exists is left alone."""
    with pytest.raises(UsageRefused):
        make(brats, store.path, config)


def test_a_full_disk_leaves_nothing(brats, config, tmp_path, monkeypatch):
    """A refusal of the system is one of ours, and the half file is gone."""

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputUnwritable) as refusal:
        make(brats, tmp_path / "out" / "x.h5", config)
    assert refusal.value.code == "E_OUTPUT"
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("kind", ["foreign", "cut", "unfinished", "newer", "without index"])
def test_what_is_no_whole_store_is_refused(store, tmp_path, kind):
    """Another file, a part of a store, one that was not finished, one of another format."""
    path = tmp_path / "x.h5"
    content = store.path.read_bytes()
    path.write_bytes({"foreign": b"PK\3\4", "cut": content[: len(content) // 2]}.get(kind, content))
    if kind not in ("foreign", "cut"):
        with h5py.File(path, "r+") as file:
            if kind == "without index":
                del file["index"]
            else:
                file.attrs["complete" if kind == "unfinished" else "format"] = 2 * (kind == "newer")
    with pytest.raises(ScanRefused) as refusal:
        Store.open(path)
    assert refusal.value.code == "E_STORE"


def test_a_flipped_bit_is_noticed(store, tmp_path):
    """Voxels pass a checksum each time they are read."""
    path = tmp_path / "x.h5"
    path.write_bytes(store.path.read_bytes())
    with h5py.File(path, "r") as file:
        chunk = file["scans/00000/data"].id.get_chunk_info(0)
    with path.open("rb+") as raw:
        raw.seek(chunk.byte_offset + chunk.size // 2)
        byte = raw.read(1)[0]
        raw.seek(-1, os.SEEK_CUR)
        raw.write(bytes([byte ^ 4]))
    copy = Store.open(path)
    with pytest.raises(ScanRefused) as refusal:
        copy.examples([copy.scans[0].id])[0].data[:, :, :]
    assert refusal.value.code == "E_STORE"


def test_a_store_of_another_preparation_is_refused(store):
    """A store at 1 mm does not train a network that sees 2 mm; its tile may be another."""
    store.require(replace(store.spec, tile=(32, 32, 32), name="other"))
    with pytest.raises(ScanRefused, match="spacing") as refusal:
        store.require(replace(store.spec, spacing=(2.0, 2.0, 2.0)))
    assert refusal.value.code == "E_STORE"


# Folds.


def test_folds_keep_patients_together():
    """Scans of a patient share a fold; folds differ by one patient at most; the data set's own go first."""
    origins = {f"P{n}-{visit}": Origin(f"P{n}") for n in range(13) for visit in range(n % 3 + 1)}
    folds = folds_of(origins)
    assert len({(scan.split("-")[0], fold) for scan, fold in folds.items()}) == 13
    counts = np.bincount([folds[f"P{n}-0"] for n in range(13)])[1:]
    assert sorted(counts.tolist()) == [2, 2, 3, 3, 3]
    assert folds_of({"a": Origin("p", 4), "b": Origin("q", 1)}) == {"a": 4, "b": 1}


@pytest.mark.parametrize("folds", [(1, 2), (None, 2)], ids=["two of one patient", "some without"])
def test_folds_that_part_a_patient_are_refused(folds):
    """No split may leak."""
    origins = {"a": Origin("p", folds[0]), "b": Origin("p" if folds[0] else "q", folds[1])}
    with pytest.raises(ScanRefused) as refusal:
        folds_of(origins)
    assert refusal.value.code == "E_FOLDS"


# Other layouts.

SWAPPED = np.array([0, 2, 1, 3], np.uint8)
"""BraTS' labels as the Decathlon and nnU-Net number them: 1 is oedema, 2 the necrotic core."""


def write_other(brats, root, msd):
    """BraTS scans as a Decathlon task, one 4-D file each, or a raw folder of nnU-Net; one without truth."""
    spec = glioma_spec(load("glioma"), (1, 1, 1))
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        (root / folder).mkdir(parents=True)
    for n, scan in enumerate(find_training_scans(brats, spec).scans):
        volume = read(scan)
        folder = root / ("imagesTs" if n == 5 else "imagesTr")
        if msd:
            nibabel.save(
                nibabel.Nifti1Image(volume.data, volume.geometry.affine), folder / f"BRATS_{n:03d}.nii.gz"
            )
        else:
            for c in range(4):
                image = nibabel.Nifti1Image(volume.data[..., c], volume.geometry.affine)
                nibabel.save(image, folder / f"BRATS_{n:03d}_{c:04d}.nii.gz")
        if n < 5:
            labels = SWAPPED[read_labels(scan.truth)[0]]
            write_labels(root / "labelsTr" / f"BRATS_{n:03d}.nii.gz", labels, volume.geometry)
    channels = {str(n): name for n, name in enumerate(("T1w", "T1gd", "T2w", "FLAIR"))}
    named = {"1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"}
    contents = (
        {"modality": channels, "labels": {"0": "background", **named}}
        if msd
        else {
            "channel_names": channels,
            "labels": {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": 3},
        }
    )
    (root / "dataset.json").write_text(json.dumps(contents))
    return root


@pytest.mark.parametrize("msd", [True, False], ids=["Decathlon", "nnU-Net"])
def test_other_layouts_give_the_same_store(store, brats, config, tmp_path, msd):
    """Voxels and labels of a Decathlon task and of a raw nnU-Net folder are those of BraTS' own layout."""
    other = make(write_other(brats, tmp_path / "task", msd), tmp_path / "x.h5", config)
    assert [scan.id for scan in other.scans] == [f"BRATS_{n:03d}" for n in range(5)]
    for one, same in zip(
        other.examples([s.id for s in other.scans]),
        store.examples([s.id for s in store.scans[:5]]),
        strict=True,
    ):
        whole = (slice(None),) * 3
        np.testing.assert_array_equal(one.data[whole], same.data[whole])
        np.testing.assert_array_equal(one.labels[whole], same.labels[whole])


@pytest.mark.parametrize(
    ("labels", "values"),
    [
        (
            {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"},
            [0, 2, 1, 3],
        ),
        ({"background": 0, "NCR": 1, "ED": 2, "ET": 4}, [0, 1, 2, 255, 3]),
        ({"background": 0, "whole tumor": [1, 2, 3], "TC": [2, 3], "ET": [3]}, [0, 2, 1, 3]),
    ],
)
def test_names_decide_what_values_mean(tmp_path, labels, values):
    """The Decathlon's, BraTS' and nnU-Net's ways to name labels."""
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    table = named_table(tmp_path / "dataset.json", glioma_spec(load("glioma"), (1, 1, 1)))
    assert table[: len(values)].tolist() == values


@pytest.mark.parametrize(
    "labels", [{"1": "liver"}, {"liver": 1}, {"ET": "x"}, {"ET": -1}, {"ET": [300]}, None, []]
)
def test_names_that_say_nothing_are_refused(tmp_path, labels):
    """A liver is no tumour, and a guess no label."""
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    with pytest.raises(ScanRefused) as refusal:
        named_table(tmp_path / "dataset.json", glioma_spec(load("glioma"), (1, 1, 1)))
    assert refusal.value.code == "E_DATASET_JSON"


def test_an_import_of_figshare_becomes_a_store(tmp_path):
    """Stacks of a few slices, and single ones, keep their patient, fold and type."""
    import_slices(write_download(tmp_path / "download"), tmp_path / "scans", {}, quiet)
    store = make(tmp_path / "scans", tmp_path / "x.h5", "figshare")
    assert isinstance(store.spec, ModelSpec)
    found = {scan.id: (scan.patient, scan.fold, scan.kind, scan.shape[2]) for scan in store.scans}
    assert found == {
        "100360_0007-0007": ("100360", 1, "pituitary", 1),
        "100360_0955-0956": ("100360", 1, "pituitary", 2),
        "MRx2001_0001-0003": ("MR 01", 2, "glioma", 3),
        "MRx2001_0004-0006": ("MR 01", 2, "glioma", 3),
    }
    settings = load("figshare")
    slices = replace(settings, data=replace(settings.data, tile=(128, 128, 1), tumour=1.0))
    images, masks = draw_batch(store.examples(list(found)), store.spec, slices, 0)
    assert images.shape[1:] == (128, 128, 1, 1)
    assert (masks.sum(axis=(1, 2, 3, 4)) > 0).all()
