"""The clean graph computes what Keras computes, layer by layer and for networks that nobody wrote."""

import keras
import numpy as np
import onnx
import pytest
from brainseg_export.graph import ALLOWED_OPS, METADATA, operators
from brainseg_export.model import flatten, to_logits
from brainseg_export.walker import LAYERS, walk
from brainseg_runtime.engines.ort import OrtEngine
from brainseg_runtime.errors import BundleInvalid
from brainseg_runtime.spec import ModelSpec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras import layers
from toys import toy_spec

from .networks import image, randomise, small_spec, unet

SHAPES = ((1, 8, 8, 8), (2, 12, 8, 16))


def agree(model, spec, shapes=SHAPES) -> onnx.ModelProto:
    """Hold the walker's graph against Keras on noise of several shapes, and return it."""
    flat = flatten(model, spec)
    proto = walk(flat, spec)
    engine = OrtEngine(proto.SerializeToString(), spec, "fp32")
    rng = np.random.default_rng(1)
    for shape in shapes:
        tiles = rng.normal(size=(*shape, len(spec.modalities))).astype(np.float32)
        expected = np.asarray(flat(tiles, training=False))
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(engine.infer(tiles), expected, rtol=2e-5, atol=2e-5)
    return proto


def conv(x, filters=5, kernel=3, **options):
    return layers.Conv3D(filters, kernel, **{"padding": "same", **options})(x)


def shared(x):
    """One convolution at two places, with a batch norm of its own after each."""
    twice = layers.Conv3D(x.shape[-1], 3, padding="same")
    return layers.BatchNormalization()(twice(layers.BatchNormalization()(twice(x))))


def nested(x):
    """A model within a model, used twice, and a Sequential beside it."""
    inner = keras.Input((None, None, None, x.shape[-1]))
    block = keras.Model(inner, layers.BatchNormalization()(conv(inner, x.shape[-1])))
    line = keras.Sequential([layers.Conv3D(x.shape[-1], 1), layers.ReLU()])
    return layers.Add()([block(block(x)), line(x)])


def forked(x):
    """A convolution that the batch norm must not change, since another layer reads it too."""
    x = conv(x)
    return layers.Concatenate()([layers.BatchNormalization()(x), x])


def forked_behind_nothing(x):
    """The same, where what is read twice is a layer that does nothing."""
    x = layers.Activation("linear")(conv(x))
    return layers.Concatenate()([layers.BatchNormalization()(x), x])


def gate(x):
    """An attention gate: one channel multiplies many."""
    return layers.Multiply()([conv(x), layers.Conv3D(1, 1, activation="sigmoid")(x)])


def up(x, size=2):
    return layers.UpSampling3D(size)(x)


PIECES = {
    "conv": conv,
    "conv without bias": lambda x: conv(x, use_bias=False),
    "even kernel": lambda x: conv(x, kernel=2),
    "uneven kernel": lambda x: conv(x, kernel=(3, 1, 2)),
    "dilation": lambda x: conv(x, dilation_rate=(1, 2, 3)),
    "groups": lambda x: conv(x, 4, groups=2),
    "stride, same": lambda x: up(conv(x, strides=2)),
    "stride, same, even kernel": lambda x: up(conv(x, kernel=4, strides=2)),
    "stride larger than the kernel": lambda x: up(conv(x, kernel=1, strides=2)),
    "stride, padded": lambda x: up(conv(layers.ZeroPadding3D(1)(x), strides=2, padding="valid")),
    "uneven stride": lambda x: up(conv(x, strides=(1, 2, 4)), (1, 2, 4)),
    "uneven padding": lambda x: conv(layers.ZeroPadding3D(((2, 0), (1, 1), (0, 2)))(x), padding="valid"),
    "padding twice": lambda x: conv(
        layers.ZeroPadding3D(1)(layers.ZeroPadding3D(1)(x)), kernel=5, padding="valid"
    ),
    "padding before same": lambda x: conv(conv(layers.ZeroPadding3D(1)(x)), padding="valid"),
    "padding before pooling": lambda x: layers.MaxPooling3D(3, 1)(layers.ZeroPadding3D(1)(x)),
    "transposed": lambda x: layers.Conv3DTranspose(5, 2, strides=2)(layers.MaxPooling3D()(x)),
    "transposed, same": lambda x: layers.Conv3DTranspose(5, 3, strides=2, padding="same")(conv(x, strides=2)),
    "transposed, wide": lambda x: layers.Conv3DTranspose(5, 5, strides=2, padding="same")(conv(x, strides=2)),
    "transposed, uneven": lambda x: layers.Conv3DTranspose(5, (1, 2, 4), strides=(1, 2, 4))(
        conv(x, strides=(1, 2, 4))
    ),
    "transposed, grows": lambda x: conv(layers.Conv3DTranspose(5, 3)(x), padding="valid"),
    "batch norm first": lambda x: conv(layers.BatchNormalization()(x)),
    "batch norm after conv": lambda x: layers.BatchNormalization()(conv(x)),
    "batch norm without centre": lambda x: layers.BatchNormalization(center=False)(conv(x, use_bias=False)),
    "batch norm without scale": lambda x: layers.BatchNormalization(scale=False)(conv(x)),
    "batch norm twice": lambda x: layers.BatchNormalization()(layers.BatchNormalization()(conv(x))),
    "batch norm after activation": lambda x: layers.BatchNormalization()(conv(x, activation="relu")),
    "batch norm after dropout": lambda x: layers.BatchNormalization()(layers.Dropout(0.5)(conv(x))),
    "batch norm after transposed": lambda x: layers.BatchNormalization()(
        layers.Conv3DTranspose(5, 2, strides=2, use_bias=False)(conv(x, strides=2))
    ),
    "batch norm of a sum": lambda x: layers.BatchNormalization()(layers.Add()([conv(x), conv(x)])),
    "batch norm after padding": lambda x: conv(
        layers.BatchNormalization()(layers.ZeroPadding3D(1)(conv(x))), padding="valid"
    ),
    "forked": forked,
    "forked behind nothing": forked_behind_nothing,
    "instance norm": lambda x: layers.GroupNormalization(-1)(conv(x)),
    "instance norm without affine": lambda x: layers.GroupNormalization(5, center=False, scale=False)(
        conv(x)
    ),
    "relu": lambda x: layers.ReLU()(conv(x)),
    "relu with a slope": lambda x: layers.ReLU(negative_slope=0.1)(conv(x)),
    "leaky relu": lambda x: layers.LeakyReLU(0.01)(conv(x)),
    "prelu": lambda x: layers.PReLU(shared_axes=(1, 2, 3))(conv(x)),
    "elu": lambda x: layers.ELU(0.5)(conv(x)),
    "softmax": lambda x: layers.Softmax()(conv(x)),
    "activation as a layer": lambda x: conv(x, activation=layers.LeakyReLU(0.05)),
    **{f"fused {name}": lambda x, name=name: conv(x, activation=name)
       for name in ("relu", "leaky_relu", "elu", "tanh", "sigmoid", "softmax", "silu")},
    "activation": lambda x: layers.Activation("leaky_relu")(conv(x)),
    "sum of three": lambda x: layers.Add()([conv(x), conv(x), conv(x)]),
    "gate": gate,
    "operators": lambda x: conv(x) + conv(x) * conv(x),
    "functions": lambda x: keras.ops.concatenate(
        [keras.ops.relu(x), keras.ops.leaky_relu(x), keras.ops.sigmoid(x), keras.ops.softmax(x)], axis=-1
    ),
    "concatenate": lambda x: layers.Concatenate(axis=4)([x, conv(x), x]),
    "max pooling": lambda x: up(layers.MaxPooling3D((1, 2, 4))(x), (1, 2, 4)),
    "max pooling, same": lambda x: up(layers.MaxPooling3D(3, 2, padding="same")(x)),
    "average pooling": lambda x: up(layers.AveragePooling3D(2)(x)),
    "average pooling, same": lambda x: up(layers.AveragePooling3D(3, 2, padding="same")(x)),
    "what only trains": lambda x: layers.GaussianNoise(1.0)(
        layers.SpatialDropout3D(0.5)(layers.AlphaDropout(0.5)(layers.GaussianDropout(0.5)(layers.Identity()(
            layers.ActivityRegularization()(x)))))
    ),
    "shared": shared,
    "nested": nested,
}  # fmt: skip


@pytest.mark.parametrize("piece", PIECES.values(), ids=PIECES.keys())
def test_every_layer_and_option_agrees_with_keras(piece):
    """To float32 rounding, for several sizes of grid and batch through one graph."""
    spec = toy_spec()
    source = image(spec)
    model = randomise(keras.Model(source, layers.Conv3D(3, 1)(piece(source))))
    proto = agree(model, spec)
    assert set(operators(proto)) <= ALLOWED_OPS


def test_every_layer_of_the_table_is_tried():
    """No emitter without a test."""
    spec, seen = toy_spec(), set()
    for piece in PIECES.values():
        source = image(spec)
        seen |= {type(layer) for layer in flatten(keras.Model(source, piece(source)), spec).layers}
    assert set(LAYERS) <= seen


@pytest.mark.parametrize(
    ("piece", "nodes"),
    {
        "batch norm after conv": {"Conv": 2},
        "batch norm twice": {"Conv": 2},
        "batch norm after dropout": {"Conv": 2},
        "batch norm after transposed": {"Conv": 2, "ConvTranspose": 1},
        "forked": {"Conv": 2, "Mul": 1, "Add": 1, "Concat": 1},
        "stride, padded": {"Conv": 2, "Resize": 1},
        "padding before pooling": {"Pad": 1, "MaxPool": 1, "Conv": 1},
        "instance norm": {"Conv": 2, "InstanceNormalization": 1},
        "shared": {"Conv": 3},
    }.items(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_nothing_is_written_that_need_not_be(piece, nodes):
    """Batch norms and zero padding go into the convolutions wherever that is exact."""
    spec = toy_spec()
    source = image(spec)
    model = randomise(keras.Model(source, layers.Conv3D(3, 1)(PIECES[piece](source))))
    assert operators(walk(flatten(model, spec), spec)) == nodes


def test_a_layer_used_twice_is_stored_once():
    """Equal weights are one weight in the file."""
    spec = toy_spec()
    source = image(spec)
    twice = layers.Conv3D(4, 3, padding="same")
    model = randomise(keras.Model(source, layers.Conv3D(3, 1)(twice(twice(source)))))
    assert len(agree(model, spec).graph.initializer) == 4


def test_an_s2d_network_is_small_and_clean():
    """Five levels at half resolution: at most 120 nodes, no Transpose, no batch norm, every size free."""
    spec = toy_spec(tile=(64, 64, 64), divisor=(32, 32, 32))
    model = unet(spec, (4, 4, 8, 8, 8), stem=True)
    proto = agree(model, spec, shapes=((1, 32, 32, 32), (2, 32, 64, 32)))
    assert len(proto.graph.node) <= 120
    assert not set(operators(proto)) - {"Conv", "ConvTranspose", "LeakyRelu", "Concat"}
    dims = [d.dim_param or d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    assert dims == ["N", 4, "i", "j", "k"]


def test_the_graph_carries_its_spec_and_is_readable_by_old_runtimes():
    """Names and metadata are the spec's; opset 18, IR 8, ONNX's own operators."""
    spec = toy_spec(input_name="scan", output_name="head")
    proto = walk(to_logits(unet(spec), spec), spec)
    assert ModelSpec.from_json(proto.metadata_props[0].value) == spec
    assert proto.metadata_props[0].key == METADATA
    assert [proto.graph.input[0].name, proto.graph.output[0].name] == ["scan", "head"]
    assert (proto.ir_version, [(o.domain, o.version) for o in proto.opset_import]) == (8, [("", 18)])


def test_the_same_model_gives_the_same_bytes():
    """Nothing of time or chance is in the graph."""
    spec = toy_spec()
    model = unet(spec)
    first, second = (walk(to_logits(model, spec), spec).SerializeToString() for _ in range(2))
    assert first == second


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    widths=st.lists(st.integers(1, 6), min_size=2, max_size=3),
    norm=st.sampled_from(["batch", "instance", "none"]),
    stem=st.booleans(),
    up=st.sampled_from(["transpose", "nearest"]),
    down=st.sampled_from(["padded", "same", "pool"]),
    seed=st.integers(0, 99),
)
def test_random_networks_agree(widths, norm, stem, up, down, seed):
    """Whatever is plugged together, the graph and Keras agree."""
    size = 2 ** (len(widths) - 1 + stem)
    spec = small_spec(tile=(2 * size,) * 3, divisor=(size,) * 3)
    model = randomise(unet(spec, widths, norm=norm, stem=stem, up=up, down=down), seed)
    # Two voxels or more at the deepest level: the norm of one voxel is its beta, and hides everything.
    agree(model, spec, shapes=((1, 2 * size, 2 * size, 4 * size),))


REFUSED = {
    "Cropping3D": lambda x: layers.ZeroPadding3D(1)(layers.Cropping3D(1)(x)),
    "LayerNormalization": lambda x: layers.LayerNormalization()(x),
    "Subtract": lambda x: layers.Subtract()([x, x]),
    "GroupNormalization": lambda x: layers.GroupNormalization(2)(x),
    "BatchNormalization": lambda x: layers.BatchNormalization(axis=1)(layers.Identity()(x)),
    "Softmax": lambda x: layers.Softmax(axis=1)(x),
    "Concatenate": lambda x: layers.MaxPooling3D((1, 1, 2))(layers.Concatenate(axis=3)([x, x])),
    "ReLU": lambda x: layers.ReLU(max_value=6)(x),
    "Activation": lambda x: layers.Activation("gelu")(x),
    "Conv3DTranspose": lambda x: layers.Conv3DTranspose(4, 1, strides=2)(layers.MaxPooling3D()(x)),
    "Multiply": lambda x: x * 2.0,
    "Split": lambda x: keras.ops.split(x, 2, axis=-1)[0],
}


@pytest.mark.parametrize(("name", "piece"), REFUSED.items(), ids=REFUSED.keys())
def test_what_the_walker_does_not_know_is_named(name, piece):
    """The layer, its class, and the way out; never a graph that is nearly right."""
    spec = toy_spec()
    source = keras.Input((8, 8, 8, 4)) if name == "BatchNormalization" else image(spec)
    spec = toy_spec(tile=(8, 8, 8), divisor=(8, 8, 8)) if name == "BatchNormalization" else spec
    model = keras.Model(source, layers.Conv3D(3, 1)(piece(source)))
    with pytest.raises(BundleInvalid, match=name) as caught:
        walk(flatten(model, spec), spec)
    assert caught.value.code == "E_LAYER"
    assert "--via tf2onnx" in caught.value.remedy


@pytest.mark.parametrize(
    ("divisor", "piece"),
    [
        (1, lambda x: up(conv(x, strides=2))),
        (2, lambda x: up(conv(conv(x, strides=2), strides=2), 4)),
        (2, lambda x: up(layers.MaxPooling3D(4)(x), 4)),
        (4, lambda x: conv(x, padding="valid")),
        (4, lambda x: layers.Add()([x, up(layers.MaxPooling3D(3)(x), 3)])),
    ],
)
def test_a_divisor_that_is_not_the_networks_is_refused(divisor, piece):
    """Sizes that come out otherwise, or are padded otherwise than in Keras, are found at export."""
    spec = toy_spec(tile=(12, 12, 12), divisor=(divisor,) * 3)
    source = image(spec)
    model = keras.Model(source, layers.Conv3D(3, 1)(piece(source)))
    with pytest.raises(BundleInvalid) as caught:
        walk(flatten(model, spec), spec)
    assert caught.value.code == "E_SPEC"
