"""Every preset of the trainer, with every option, becomes a clean graph that computes what Keras computes."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="trainer and export are not installed (CI installs them)")

from brainseg_export.graph import ALLOWED_OPS, operators
from brainseg_export.model import to_logits
from brainseg_export.walker import walk
from brainseg_runtime.engines.ort import OrtEngine
from brainseg_runtime.graph import check
from brainseg_trainer.config import Network
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


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("upsampling", ["transposed", "nearest"])
@pytest.mark.parametrize("name", NETWORKS)
def test_presets_become_clean_graphs(name, norm, upsampling):
    """Allowed operators only, no Transpose, and Keras' logits to five digits, heads for types included."""
    network = replace(NETWORKS[name], norm=norm, upsampling=upsampling, dropout=0.2)
    if network.preset != "isensee2017":
        network = replace(network, auxiliary=1)
    model = deployed(build_network(network, 4, 3, types=2))
    randomise(model)
    sides = divisor(network)
    spec = toy_spec(divisor=sides, tile=sides, types=("glioma", "meningioma"), name="preset")
    flat = to_logits(model, spec)
    graph = walk(flat, spec)
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
    shape = [2 * n if n > 1 else 3 for n in sides]
    tile = np.random.default_rng(1).normal(size=(2, *shape, 4)).astype(np.float32)
    expected = np.asarray(flat(tile, training=False))
    assert expected.shape[-1] == 5
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(engine.infer(tile) / scale, expected / scale, atol=2e-5)
