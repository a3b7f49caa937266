"""Every preset of the trainer, with every option, becomes a clean graph that computes what Keras computes."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="trainer and export are not installed (CI installs them)")

from brainseg_export.graph import ALLOWED_OPS, operators
from brainseg_export.half import to_half
from brainseg_export.model import to_logits
from brainseg_export.walker import walk
from brainseg_runtime.engines.ort import OrtEngine
from brainseg_runtime.graph import check
from brainseg_runtime.plans.building import build, census
from brainseg_runtime.plans.inspection import require_precision
from brainseg_runtime.plans.request import profiles_of
from brainseg_trainer.config import Network, load
from brainseg_trainer.networks import build_network, deployed, divisor
from toys import toy_spec

NETWORKS = {
    "s2d": Network("s2d", 4, 3),
    "unet3d": Network("unet3d", 2, 3),
    "nnunet": Network("nnunet", 2, 3),
    "unet2d": Network("unet2d", 2, 3),
    "unet2d, 2.5D": Network("unet2d", 2, 3, slices=3),
    "isensee2017": Network("isensee2017", 2, 3),
}
# Keras turns TensorFlow's variables into arrays in a way that numpy 2 will end.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


def randomise(model):
    """Weights and statistics as a training might leave them."""
    rng = np.random.default_rng(0)
    for variable in model.weights:
        low, high = (0.5, 1.5) if variable.name in ("gamma", "moving_variance") else (-0.3, 0.3)
        variable.assign(rng.uniform(low, high, variable.shape))


RECIPES = ("glioma", "unet3d", "nnunet", "unet2d", "isensee2017")
"""Those of full size."""
BASE = {name: load(name).network for name in RECIPES}
BASE["unet2d of one slice"] = replace(BASE["unet2d"], slices=1)


def export(network):
    """A network as it is deployed, its spec, and its clean graph."""
    model = deployed(build_network(network, 4, 3, types=2))
    randomise(model)
    sides = divisor(network)
    spec = toy_spec(divisor=sides, tile=sides, types=("glioma", "meningioma"), name="preset")
    flat = to_logits(model, spec)
    return flat, spec, walk(flat, spec)


exported = cache(export)


def variant(name, norm, upsampling):
    network = replace(NETWORKS[name], norm=norm, upsampling=upsampling, dropout=0.2)
    return network if network.preset == "isensee2017" else replace(network, auxiliary=1)


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("upsampling", ["transposed", "nearest"])
@pytest.mark.parametrize("name", NETWORKS)
def test_presets_become_clean_graphs(name, norm, upsampling):
    """Allowed operators only, no Transpose, and Keras' logits to five digits, heads for types included."""
    network = variant(name, norm, upsampling)
    flat, spec, graph = exported(network)
    found = operators(graph)
    assert set(found) <= ALLOWED_OPS
    check(graph.SerializeToString())
    assert "Transpose" not in found
    # One norm of an instance per norm of Keras; of a batch, none but before an activation that adds.
    norms = sum(type(layer).__name__ == "GroupNormalization" for layer in flat.layers)
    assert found.get("InstanceNormalization", 0) == norms
    if network.preset != "isensee2017":
        assert "Mul" not in found
    engine = OrtEngine(graph.SerializeToString(), spec, "fp32")
    shape = [2 * n if n > 1 else 3 for n in spec.divisor]
    tile = np.random.default_rng(1).normal(size=(2, *shape, 4)).astype(np.float32)
    expected = np.asarray(flat(tile, training=False))
    assert expected.shape[-1] == 5
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(engine.infer(tile) / scale, expected / scale, atol=2e-5)


def require_clean(graph, spec, precision):
    """TensorRT-RTX parses a graph into the layers that it should, and builds a plan in its precision."""
    trt = pytest.importorskip("tensorrt_rtx", reason="the extra rtx is not installed (CI installs it)")
    data = graph.SerializeToString()
    nodes, layers = operators(graph), census(trt, data)
    convolutions = layers["CONVOLUTION"] + layers["DECONVOLUTION"]
    assert convolutions == nodes["Conv"] + nodes["ConvTranspose"]
    assert layers["NORMALIZATION"] == nodes["InstanceNormalization"]
    # A cast at each end, and two around each norm, whose statistics stay in FP32; none elsewhere.
    assert layers["CAST"] == (2 + 2 * layers["NORMALIZATION"] if precision == "fp16" else 0)
    # Factors and summands per channel are given four more axes; no tensor is shuffled.
    assert layers["SHUFFLE"] == 2 * nodes["Mul"]
    assert not {"REDUCE", "UNARY", "SLICE", "GATHER", "SHAPE"} & set(layers)
    return build(trt, data, profiles_of(spec)), convolutions


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("upsampling", ["transposed", "nearest"])
@pytest.mark.parametrize("name", NETWORKS)
def test_tensorrt_takes_every_preset(name, norm, upsampling):
    """One NORMALIZATION per instance norm, none for batch norm, no stray cast, kernels as the graph says."""
    flat, spec, graph = exported(variant(name, norm, upsampling))
    for precision, form in (("fp32", graph), ("fp16", to_half(graph))):
        built, convolutions = require_clean(form, spec, precision)
        require_precision(built.kernels, precision)
        assert len(built.kernels) == convolutions
    norms = sum(type(layer).__name__ == "GroupNormalization" for layer in flat.layers)
    assert operators(graph)["InstanceNormalization"] == norms
    assert (norms > 0) == (norm == "instance")


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("name", BASE)
def test_tensorrt_takes_networks_of_full_size(name, norm):
    """As the recipes have them, in FP32 and FP16."""
    _, spec, graph = export(replace(BASE[name], norm=norm))  # not kept: they are large
    for precision, form in (("fp32", graph), ("fp16", to_half(graph))):
        built, convolutions = require_clean(form, spec, precision)
        require_precision(built.kernels, precision)
        assert len(built.kernels) == convolutions
