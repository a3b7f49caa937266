"""The presets: what they are made of, how large they are, and what they take and give."""

import keras
import numpy as np
import pytest
from brainseg_runtime.errors import UsageRefused
from brainseg_trainer.config import Network
from brainseg_trainer.networks import build_network, divisor, load_network, save_network

PRESETS = {"s2d": Network("s2d", 4, 3), "unet3d": Network("unet3d", 2, 3)}
CONVOLUTIONS = (keras.layers.Conv3D, keras.layers.Conv3DTranspose)


def gmac(model, side):
    """Multiplications of the convolutions for a cube of ``side`` voxels, in 10^9."""
    total = 0
    for layer in model.layers:
        if isinstance(layer, CONVOLUTIONS):
            end = layer.input if isinstance(layer, keras.layers.Conv3DTranspose) else layer.output
            upto = keras.Model(model.inputs, end)
            voxels = np.prod(upto.compute_output_shape((1, side, side, side, 4))[1:4])
            total += int(voxels) * int(np.prod(layer.kernel.shape))
    return total / 1e9


@pytest.mark.parametrize(
    ("network", "millions", "giga"),
    [(Network("s2d", 32, 5), 16.6, 66), (Network("unet3d", 32, 4), 19.1, 1959)],
    ids=["s2d", "unet3d"],
)
def test_full_size_networks_have_the_size_they_are_known_by(network, millions, giga):
    """Parameters and GMAC at 4 x 128^3 are within 2 % of the published or measured figures."""
    model = build_network(network, 4, 3)
    assert model.count_params() / 1e6 == pytest.approx(millions, rel=0.02)
    assert gmac(model, 128) == pytest.approx(giga, rel=0.02)


@pytest.mark.parametrize("network", PRESETS.values(), ids=PRESETS)
def test_any_multiple_of_the_divisor_goes_in(network):
    """Float32 logits of the input's size come out, whatever multiple of the divisor goes in."""
    model = build_network(network, 4, 3)
    d = divisor(network)
    for shape in ((d, 2 * d, 3 * d), (2 * d, 2 * d, 2 * d)):
        logits = model(np.ones((1, *shape, 4), np.float32), training=False)
        assert tuple(logits.shape) == (1, *shape, 3)
        assert keras.backend.standardize_dtype(logits.dtype) == "float32"
    assert model.output_names == ["logits"]


@pytest.mark.parametrize("network", PRESETS.values(), ids=PRESETS)
def test_networks_are_made_of_plain_keras(network):
    """Only Keras' own layers; strided 3x3x3 convolutions pad for themselves; no bias before a norm."""
    model = build_network(network, 4, 3)
    for layer in model.layers:
        assert type(layer) is getattr(keras.layers, type(layer).__name__)
        assert not isinstance(layer, keras.layers.Lambda)
        if isinstance(layer, keras.layers.Conv3D) and layer.strides != (1, 1, 1):
            assert layer.padding == "valid"
        if isinstance(layer, keras.layers.BatchNormalization):
            assert not layer.input._keras_history.operation.use_bias


def test_s2d_loses_no_voxel_in_its_stem():
    """However narrow the network, 2x2x2 voxels of four modalities fit into the stem's channels."""
    stem = build_network(Network("s2d", 4, 2), 4, 3).get_layer("stem")
    assert stem.filters >= 32
    assert stem.kernel_size == stem.strides == (2, 2, 2)


def test_a_network_comes_back_from_its_file(tmp_path):
    """Saving and loading changes no logit, and leaves nothing but the file."""
    network = build_network(PRESETS["s2d"], 4, 3)
    path = tmp_path / "model.keras"
    save_network(network, path)
    tile = np.random.default_rng(0).normal(size=(1, 16, 16, 16, 4)).astype(np.float32)
    np.testing.assert_array_equal(load_network(path)(tile), network(tile))
    assert [p.name for p in tmp_path.iterdir()] == ["model.keras"]
    with pytest.raises(UsageRefused, match="E_RUN"):
        load_network(tmp_path / "other.keras")
