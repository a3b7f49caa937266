"""What a network needs around a voxel is measured; who may compute whole heads is read from the graph."""

import keras
import numpy as np
import pytest
from brainseg_export.locality import halo, require_local, working_bytes
from brainseg_export.model import keras_engine
from brainseg_export.pipeline import Source, export
from brainseg_export.walker import walk
from brainseg_runtime.errors import BundleInvalid
from brainseg_runtime.outputs import write
from brainseg_runtime.scans import find_scans, read
from brainseg_runtime.segmenter import load
from keras import layers
from toys import toy_spec

from .networks import image, randomise, settle, unet, write_run

WHOLE = toy_spec(scheme="whole")


def chain(spec, kernel):
    """Two convolutions at full resolution."""
    x = source = image(spec)
    x = layers.Conv3D(6, kernel, padding="same")(x)
    return randomise(keras.Model(source, layers.Conv3D(3, kernel, padding="same")(x)))


def test_the_halo_is_what_the_network_uses():
    """One divisor's worth where four voxels are seen; none is found where all of the head is."""
    data = np.random.default_rng(0).normal(size=(64, 16, 16, 4)).astype(np.float32)
    assert halo([data], keras_engine(chain(WHOLE, 3)), WHOLE) == 4
    assert halo([data], keras_engine(chain(WHOLE, 7)), WHOLE) == 8
    source = image(WHOLE)
    mean = layers.GlobalAveragePooling3D(keepdims=True)(source)
    model = keras.Model(source, layers.Conv3D(3, 1)(layers.Add()([source, mean])))
    assert halo([data], keras_engine(randomise(model)), WHOLE) == 0
    assert halo([data], keras_engine(chain(WHOLE, 3)), toy_spec()) == 0


def test_working_bytes_are_those_of_the_graph():
    """Two convolutions: six channels of FP32 alive beside input and output, whatever the activation."""
    spec = toy_spec()
    assert working_bytes(walk(chain(spec, 3), spec), spec) == 6 * 4
    source = image(spec)
    x = layers.LeakyReLU()(layers.Conv3D(6, 3, padding="same")(source))
    y = layers.ReLU()(layers.Conv3D(10, 3, padding="same")(x))
    model = keras.Model(source, layers.Conv3D(3, 1)(layers.Concatenate()([x, y])))
    assert working_bytes(walk(randomise(model), spec), spec) == (6 + 10 + 16) * 4


def test_instance_norm_and_whole_heads_exclude_each_other(tmp_path):
    """Its statistics would be those of another volume than it was trained on: E_SPEC, nothing written."""
    model = settle(unet(WHOLE, norm="instance"), WHOLE)
    with pytest.raises(BundleInvalid, match="InstanceNormalization") as caught:
        require_local(walk(model, WHOLE), WHOLE)
    assert caught.value.code == "E_SPEC"
    run = write_run(tmp_path / "run", WHOLE, model)
    with pytest.raises(BundleInvalid, match="E_SPEC"):
        export(Source.of(run), tmp_path / "bundle", lambda line: None)
    assert not (tmp_path / "bundle").exists()


def test_a_whole_bundle_carries_its_halo_and_segments_in_slabs_as_in_one_pass(tmp_path):
    """The exporter measures, the bundle says it, the runtime uses it."""
    run = write_run(tmp_path / "run", WHOLE)
    made = export(Source.of(run), tmp_path / "bundle", lambda line: None)
    assert made.spec.scheme == "whole"
    assert made.spec.working_bytes > 0
    scan = read(find_scans(run / "parity", made.spec).scans[0])
    with load(made.folder) as segmenter:
        free = segmenter.segment(scan)
    assert free.record["plan"]["passes"] == 1
    assert "whole head in one pass" in made.read("MODEL_CARD.md").decode()


@pytest.mark.parametrize("engine", ["openvino", "ort"])
def test_the_mask_does_not_depend_on_threads(tmp_path, engine):
    """One thread and two give a mask file of the same bytes."""
    run = write_run(tmp_path / "run", WHOLE)
    made = export(Source.of(run), tmp_path / "bundle", lambda line: None)
    scan = read(find_scans(run / "parity", made.spec).scans[0])
    hashes = set()
    for threads in (1, 2):
        with load(made.folder, engine, threads=threads) as segmenter:
            written = write(segmenter.segment(scan), tmp_path / str(threads))
            hashes.add(written.contents["mask"]["sha256"])
    assert len(hashes) == 1
