"""The presets: what they are made of, how large they are, what they take and give, and what they cost."""

from dataclasses import replace

import keras
import numpy as np
import pytest
from brainseg_runtime.errors import BudgetExceeded, UsageRefused
from brainseg_trainer.config import Network, load
from brainseg_trainer.networks import build_network, deployed, divisor, load_network, save_network
from brainseg_trainer.networks.cost import cost_of, require_room

PRESETS = {
    "s2d": Network("s2d", 4, 3),
    "unet3d": Network("unet3d", 2, 3),
    "isensee2017": Network("isensee2017", 2, 4, norm="instance", upsampling="nearest", dropout=0.3),
    "nnunet": Network("nnunet", 2, 3, norm="instance"),
    "unet2d": Network("unet2d", 2, 3, slices=3),
}
CONVOLUTIONS = (keras.layers.Conv3D, keras.layers.Conv3DTranspose)
each_preset = pytest.mark.parametrize("network", PRESETS.values(), ids=PRESETS)


def layers_of(model, kind):
    return [layer for layer in model.layers if isinstance(layer, kind)]


@pytest.mark.parametrize(
    ("recipe", "millions", "giga"),
    [("glioma", 16.6, 66), ("unet3d", 19.1, 1959), ("isensee2017", 8.27, 176), ("nnunet", 31.2, 483)],
)
def test_full_size_networks_have_the_size_they_are_known_by(recipe, millions, giga):
    """Parameters and GMAC at 4 x 128^3 are within 2 % of the published or measured figures."""
    config = load(recipe)
    assert config.data.tile == (128, 128, 128)
    cost = cost_of(config)
    assert cost.parameters / 1e6 == pytest.approx(millions, rel=0.02)
    assert cost.multiplications / 1e9 == pytest.approx(giga, rel=0.02)


def test_multiplications_are_those_of_the_convolutions():
    """Counted by hand for two levels: voxels put out, taken in where it is transposed, times the kernel."""
    config = load("demo-nnunet")
    small = replace(config, network=Network("nnunet", 3, 2), data=replace(config.data, tile=(8, 8, 8)))
    fine, coarse = 8**3, 4**3
    expected = fine * 27 * (4 * 3 + 3 * 3) + coarse * 27 * (3 * 6 + 6 * 6)
    expected += coarse * 8 * 6 * 3 + fine * 27 * (6 * 3 + 3 * 3) + fine * 3 * 3
    assert cost_of(small).multiplications == expected
    # The widest moment: skip and up-sampled half joined, and both still there, 3 + 3 + 6 channels of 4 bytes.
    assert cost_of(small).inference_bytes == fine * 12 * 4


@each_preset
def test_any_multiple_of_the_divisor_goes_in(network):
    """Float32 logits of the input's size come out, whatever multiple of the divisor goes in."""
    model = build_network(network, 4, 3)
    d = np.array(divisor(network))
    for shape in (d * (1, 2, 3), d * (2, 2, 2)):
        logits = model(np.ones((1, *shape, 4), np.float32), training=False)
        assert tuple(logits.shape) == (1, *shape, 3)
        assert keras.backend.standardize_dtype(logits.dtype) == "float32"
    assert model.output_names == ["logits"]


@each_preset
@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("upsampling", ["transposed", "nearest"])
def test_networks_are_made_of_plain_keras(network, norm, upsampling):
    """Only Keras' own layers; strided 3x3x3 convolutions pad for themselves; no bias before a norm."""
    model = build_network(replace(network, norm=norm, upsampling=upsampling, dropout=0.1), 4, 3, types=3)
    for layer in model.layers:
        assert type(layer) is getattr(keras.layers, type(layer).__name__)
        assert not isinstance(layer, keras.layers.Lambda)
        if isinstance(layer, keras.layers.Conv3D) and layer.strides != (1, 1, 1):
            assert layer.padding == "valid"
        if isinstance(layer, keras.layers.LeakyReLU):
            assert layer.negative_slope == pytest.approx(0.01)
        if isinstance(layer, keras.layers.Conv3D) and layer.use_bias:
            read = [node.operation for node in layer._outbound_nodes]
            assert layer.name.startswith("up") or not any(
                isinstance(reader, keras.layers.BatchNormalization) for reader in read
            )
    other = keras.layers.GroupNormalization if norm == "batch" else keras.layers.BatchNormalization
    assert not layers_of(model, other)
    assert all(n.groups == n.gamma.shape[0] for n in layers_of(model, keras.layers.GroupNormalization))
    finer = [layer for layer in layers_of(model, keras.layers.UpSampling3D) if layer.name.startswith("up")]
    assert len(finer) == (network.depth - 1 if upsampling == "nearest" else 0)
    rates = {layer.rate for layer in layers_of(model, keras.layers.SpatialDropout3D)}
    assert rates == {0.1}


@each_preset
def test_a_head_for_the_type_speaks_for_places(network):
    """Type logits follow the regions' logits and are constant over each voxel of the coarsest grid."""
    model = build_network(network, 4, 3, types=2)
    d = divisor(network)
    tile = np.random.default_rng(0).normal(size=(1, *(2 * n for n in d), 4)).astype(np.float32)
    logits = np.array(model(tile))
    assert logits.shape == (*tile.shape[:4], 5)
    said = logits[..., 3:].reshape(1, 2, d[0], 2, d[1], 2, d[2], 2)
    assert (np.ptp(said, axis=(2, 4, 6)) == 0).all()
    assert np.ptp(said, axis=(1, 3, 5)).max() > 0


@pytest.mark.parametrize("preset", ["s2d", "unet3d", "nnunet", "unet2d"])
def test_auxiliary_heads_are_coarser_and_leave(preset):
    """Heads on ever coarser grids, finest first, which ``deployed`` takes off without changing a logit."""
    network = replace(PRESETS[preset], depth=4, auxiliary=2)
    model = build_network(network, 4, 3)
    tile = np.random.default_rng(0).normal(size=(1, *(2 * n for n in divisor(network)), 4)).astype(np.float32)
    logits, *coarser = model(tile)
    assert tuple(logits.shape) == (*tile.shape[:4], 3)
    factors = [tuple(a // b for a, b in zip(tile.shape[1:4], c.shape[1:4], strict=True)) for c in coarser]
    first, flat = (4 if preset == "s2d" else 2), preset == "unet2d"
    assert factors == [(f, f, 1 if flat else f) for f in (first, 2 * first)]
    alone = deployed(model)
    np.testing.assert_array_equal(alone(tile), logits)
    assert not [layer.name for layer in alone.layers if layer.name.startswith("auxiliary")]
    assert alone.output_names == ["logits"]


def test_two_and_a_half_dimensions_are_neighbours_as_channels():
    """A first kernel three slices thick is a 2-D convolution of a slice and its neighbours side by side."""
    model = build_network(Network("unet2d", 2, 2, slices=3), 1, 1)
    thick = model.get_layer("down0a_conv")
    kernel = np.array(thick.kernel)
    assert kernel.shape == (3, 3, 3, 1, 2)
    stack = np.random.default_rng(0).normal(size=(1, 8, 8, 5, 1)).astype(np.float32)
    ours = np.array(thick(stack))
    beyond = np.pad(stack, ((0, 0), (0, 0), (0, 0), (1, 1), (0, 0)))[..., 0]
    flat = keras.layers.Conv2D(2, 3, padding="same", use_bias=False)
    flat.build((None, 8, 8, 3))
    flat.kernel.assign(kernel[:, :, :, 0, :])
    for k in range(5):
        np.testing.assert_allclose(ours[:, :, :, k], flat(beyond[..., k : k + 3]), atol=1e-5)
    # No other kernel, stride or pool reaches over slices.
    for layer in model.layers[2:]:
        for size in ("kernel_size", "strides", "pool_size", "size"):
            assert getattr(layer, size, (1,))[-1] == 1


def test_s2d_loses_no_voxel_in_its_stem():
    """However narrow the network, 2x2x2 voxels of four modalities fit into the stem's channels."""
    stem = build_network(Network("s2d", 4, 2), 4, 3).get_layer("stem")
    assert stem.filters >= 32
    assert stem.kernel_size == stem.strides == (2, 2, 2)


def test_a_run_that_does_not_fit_is_refused_with_one_that_does(monkeypatch):
    """What a step takes, what there is, and a batch, tile or width that fits are said before training."""
    config = load("isensee2017")
    monkeypatch.setattr("brainseg_trainer.networks.cost.machine_memory", lambda: 8 * 10**9)
    with pytest.raises(BudgetExceeded, match=r"14\.\d GB, the machine has 8\.0 GB") as refusal:
        require_room(config)
    assert (refusal.value.code, refusal.value.exit_status) == ("E_MEMORY", 8)
    assert "training.batch = 1, data.tile = [128, 128, 128]" in str(refusal.value)
    require_room(replace(config, training=replace(config.training, batch=1)))
    monkeypatch.setattr("brainseg_trainer.networks.cost.machine_memory", lambda: 3 * 10**9)
    with pytest.raises(BudgetExceeded, match=r"data\.tile = \[64, 64, 64\]"):
        require_room(config)


def test_one_voxel_is_not_normed():
    """Instance norm over a single voxel, which would make everything 0, is refused before training."""
    config = load("demo-nnunet")
    side = divisor(config.network)
    with pytest.raises(UsageRefused, match="one voxel") as refusal:
        require_room(replace(config, data=replace(config.data, tile=side)))
    assert refusal.value.code == "E_NETWORK"


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
