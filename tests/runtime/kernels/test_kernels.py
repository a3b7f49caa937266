"""The kernels compute what numpy computes, to the last bit: here their very source, compiled for a CPU."""

import ctypes
import re
import shutil
from functools import partial

import numpy as np
import pytest
from brainseg_runtime.engines.function import FunctionEngine
from brainseg_runtime.geometry import Geometry
from brainseg_runtime.gpu import NoDriver, gpus
from brainseg_runtime.kernels.steps import Statistics, Steps
from brainseg_runtime.labels import decide
from brainseg_runtime.preprocess import _background, prepare, restore
from brainseg_runtime.scans import find_scans, read
from brainseg_runtime.tiles import Tiling, predict
from brainseg_runtime.volume import Volume
from toys import ORIENTATIONS, mixing, oblique_affine, toy_engine, toy_spec, toy_volume

from .machines import FOLDER, STRUCTURES, Cpu, GpuMachine
from .nvrtc import compiled


@pytest.fixture(scope="session", params=["cpu", "gpu"])
def machine(request, tmp_path_factory):
    """Where the kernels run; a GPU where there is one."""
    if request.param == "cpu":
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("there is no C compiler")
        return Cpu(compiler, tmp_path_factory.mktemp("kernels"))
    pytest.importorskip("cuda.bindings.driver", reason="the extra rtx is not installed (CI installs it)")
    try:
        gpus()
    except NoDriver as error:
        pytest.skip(str(error))
    return GpuMachine()


def statistics_of(volume, placement):
    """As ``prepare`` finds them."""
    channels = [placement.reorientation.apply(volume.data[..., c]) for c in range(volume.data.shape[3])]
    found = [_background(channel) for channel in channels]
    constant = np.array([value is not None for value in found])
    background = np.array([0 if value is None else value for value in found], dtype=np.float32)
    brain = np.zeros(channels[0].shape, dtype=bool)
    for channel, value in zip(channels, found, strict=True):
        brain |= True if value is None else channel != value
    inside = [np.ascontiguousarray(channel[placement.box])[brain[placement.box]] for channel in channels]
    deviation = [float(values.std(dtype=np.float64)) for values in inside]
    return Statistics(
        background,
        constant,
        np.array([values.mean(dtype=np.float64) for values in inside], dtype=np.float32),
        np.array([1 / d if d > 0 else 0 for d in deviation], dtype=np.float32),
    )


def through_kernels(volume, spec, engine, machine):
    """A scan's logits and labels, by the kernels alone but for the network; results are poisoned before."""
    placement = prepare(volume, spec).placement
    tiling = Tiling.of(placement.grid, spec)
    steps, statistics = Steps(spec, placement, tiling, machine.put), statistics_of(volume, placement)
    scan = machine.put(np.moveaxis(volume.data, -1, 0))
    brain = np.full(placement.box_shape, 251, np.uint8)
    tiles = np.full((len(tiling), len(spec.modalities), *tiling.tile), np.nan, np.float32)
    logits = np.full((spec.output_channels, *placement.grid), np.nan, np.float32)
    labels, bad = np.zeros(volume.geometry.shape, np.uint8), np.zeros(1, np.int32)
    at_brain, at_tiles, at_logits, at_labels, at_bad = map(machine.put, (brain, tiles, logits, labels, bad))
    machine.run("foreground", *steps.foreground(scan, statistics, at_brain))
    machine.run("gather", *steps.gather(scan, at_brain, statistics, at_tiles))
    inputs = machine.get(at_tiles, tiles)
    answers = np.concatenate([engine.infer(np.moveaxis(tile[None], 1, -1)) for tile in inputs])
    machine.run("blend", *steps.blend(machine.put(np.moveaxis(answers, -1, 1)), at_logits))
    machine.run("decide", *steps.decide(at_logits, at_labels, at_bad))
    found = np.moveaxis(machine.get(at_logits, logits), 0, -1)
    return found, machine.get(at_labels, labels), int(machine.get(at_bad, bad)[0])


def exact_engine(spec):
    """A network whose last bits do not depend on how tiles lie in memory, as a matrix product's do."""
    weights = mixing(spec)

    def mix(tiles):
        logits = np.zeros((*tiles.shape[:4], spec.output_channels), np.float32)
        for c, row in enumerate(weights):
            logits += tiles[..., c, None] * row
        return logits

    return toy_engine(spec, mix)


def check(volume, spec, machine):
    """Logits and labels are numpy's, every one."""
    engine, prepared = exact_engine(spec), prepare(volume, spec)
    expected = predict(prepared.data, engine, spec)
    mask = restore(expected[..., : spec.label_channels], prepared.placement, partial(decide, spec=spec))
    logits, labels, bad = through_kernels(volume, spec, engine, machine)
    np.testing.assert_array_equal(logits, expected)
    np.testing.assert_array_equal(labels, mask)
    assert bad == 0
    return mask


SPECS = {
    "tiles": {},
    "whole head": {"scheme": "whole", "divisor": (8, 8, 8)},
    "another spacing": {"spacing": (1.3, 0.8, 2.0)},
    "intensities as they are": {"normalisation": "none"},
    "softmax": {"activation": "softmax", "channels": (0, 1, 2, 3)},
    "types": {"types": ("glioma", "meningioma")},
    "tiles that hardly overlap": {"tile": (8, 8, 8), "overlap": 0.1},
}


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("background", [0.0, -3.5])
def test_kernels_give_numpys_masks(machine, name, background):
    """Whatever the scheme, the spacing, the normalisation and the activation."""
    mask = check(toy_volume(seed=2, background=background), toy_spec(**SPECS[name]), machine)
    assert len(np.unique(mask)) > 1


@pytest.mark.parametrize("orientation", ORIENTATIONS[::5], ids=lambda o: f"{o.axes}{o.flips}")
def test_kernels_find_the_voxels_of_any_orientation(machine, orientation):
    """Axes in any order and direction, oblique and of unequal spacing."""
    volume = toy_volume(Geometry((20, 24, 18), oblique_affine((1.0, 1.25, 1.5))))
    turned = Volume(
        np.ascontiguousarray(orientation.apply(volume.data)),
        orientation.geometry(volume.geometry),
        scan="turned",
    )
    check(turned, toy_spec(), machine)


def test_a_channel_without_a_background_makes_everything_brain(machine):
    """As in numpy: where no value repeats, nothing is background."""
    volume = toy_volume()
    data = volume.data.copy()
    data[..., 1] = np.random.default_rng(0).normal(100, 10, data.shape[:3])
    check(Volume(data, volume.geometry, scan="noise"), toy_spec(), machine)


def test_a_logit_that_is_not_finite_is_reported(machine):
    """The labels are then nobody's, and must not be used."""
    spec = toy_spec()
    broken = FunctionEngine(
        lambda tiles: np.where(tiles[..., :3] > 1, np.float32(np.inf), np.float32(0)),
        toy_engine(spec).identity,
    )
    broken.infer = broken._function  # past the engine's own look at its logits
    assert through_kernels(toy_volume(), spec, broken, machine)[2] == 1


def test_the_ptx_that_ships_is_that_of_the_source():
    """Compiled anew it is the same text, for Turing and later, without a fused multiply-add."""
    shipped = (FOLDER / "scan.ptx").read_text()
    assert ".target sm_75" in shipped
    assert "fma" not in shipped
    try:
        fresh = compiled((FOLDER / "scan.cu").read_text())
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert shipped == fresh, "make ptx"


def test_the_kernels_are_told_what_they_expect():
    """Every structure has the size that the compiler gave it; the order of fields shows in the results."""
    shipped = (FOLDER / "scan.ptx").read_text()
    sizes = re.findall(r"(\w+)_param_0\[(\d+)\]", shipped)
    assert {name: int(size) for name, size in sizes} == {
        name: ctypes.sizeof(structure) for name, structure in STRUCTURES.items()
    }


@pytest.mark.data
def test_kernels_give_numpys_masks_on_real_scans(machine, data_root):
    """Voxel for voxel, at the scans' own spacing and at another."""
    spec = toy_spec(tile=(96, 96, 96))
    found = [
        scan for folder in sorted(data_root.iterdir()) if folder.is_dir() for scan in scans_in(folder, spec)
    ]
    if not found:
        pytest.skip(f"no scan of four modalities directly in a folder of {data_root}")
    for scan in found[:2]:
        volume = read(scan)
        for spacing in ((1.0, 1.0, 1.0), (1.4, 1.1, 1.7)):
            check(volume, toy_spec(tile=(96, 96, 96), spacing=spacing), machine)


def scans_in(folder, spec):
    """Whole scans; none where the folder holds something else."""
    from brainseg_runtime.errors import BrainsegError

    try:
        return list(find_scans(folder, spec).scans)
    except BrainsegError:
        return []
