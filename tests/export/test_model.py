"""Any functional Keras model becomes flat float32 logits, and what cannot is refused with a code."""

import keras
import numpy as np
import pytest
from brainseg_export.model import flatten, keras_engine, load, to_logits
from brainseg_runtime.errors import BundleInvalid, UsageRefused
from hostile.keras_models import HOSTILE
from keras import layers
from toys import toy_spec

from .networks import image, randomise, saved, unet

SOFTMAX = {"activation": "softmax", "channels": (0, 1, 2, 3)}


def head(x, channels=3, **options):
    return layers.Conv3D(channels, 1, **options)(x)


def inner(x, activation):
    """The activation deep in a model within the model."""
    source = keras.Input((None, None, None, x.shape[-1]))
    return keras.Sequential([keras.Model(source, head(source)), layers.Activation(activation)])(x)


ENDS = {
    "logits": (lambda x: head(x), None),
    "fused sigmoid": (lambda x: head(x, activation="sigmoid"), "sigmoid"),
    "sigmoid layer": (lambda x: layers.Activation("sigmoid")(head(x)), "sigmoid"),
    "sigmoid function": (lambda x: keras.ops.sigmoid(head(x)), "sigmoid"),
    "sigmoid, then float32": (
        lambda x: layers.Activation("linear", dtype="float32")(head(x, activation="sigmoid")),
        "sigmoid",
    ),
    "sigmoid in an inner model": (lambda x: inner(x, "sigmoid"), "sigmoid"),
    "fused softmax": (lambda x: head(x, 4, activation="softmax"), "softmax"),
    "softmax layer": (lambda x: layers.Softmax()(head(x, 4)), "softmax"),
    "softmax function": (lambda x: keras.ops.softmax(head(x, 4)), "softmax"),
}


@pytest.mark.parametrize(("end", "activation"), ENDS.values(), ids=ENDS.keys())
def test_the_last_activation_is_taken_off_wherever_it_is(end, activation):
    """What is left are logits: the activation on top gives the model's own output again."""
    spec = toy_spec(**SOFTMAX) if activation == "softmax" else toy_spec()
    source = image(spec)
    model = randomise(keras.Model(source, end(layers.Conv3D(6, 3, padding="same")(source))))
    tiles = np.random.default_rng(0).normal(size=(1, 4, 4, 4, 4)).astype(np.float32)
    logits = to_logits(model, spec)(tiles)
    again = keras.activations.get(activation)(logits)
    np.testing.assert_allclose(again, model(tiles), atol=1e-6)
    assert activation is None or np.abs(logits).max() > 1


def test_the_models_own_activation_stays_as_it_was():
    """Export changes its own copy, never the model that it was given."""
    spec, source = toy_spec(), image(toy_spec())
    model = keras.Model(source, head(source, activation="sigmoid"))
    to_logits(model, spec)
    assert model.layers[-1].activation is keras.activations.sigmoid


def test_a_model_trained_in_mixed_precision_is_exported_in_float32():
    """Same weights, every layer float32, inner models included."""
    spec = toy_spec()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        source = image(spec)
        block = keras.Sequential([layers.Conv3D(4, 3, padding="same", activation=layers.LeakyReLU(0.1))])
        mixed = randomise(keras.Model(source, head(block(source), activation="sigmoid", dtype="float32")))
    finally:
        keras.config.set_dtype_policy("float32")
    twin = to_logits(mixed, spec)
    assert {layer.compute_dtype for layer in twin.layers} == {"float32"}
    tiles = np.random.default_rng(0).normal(size=(1, 4, 4, 4, 4)).astype(np.float32)
    probabilities = keras.activations.sigmoid(twin(tiles))
    assert 0 < np.abs(probabilities - mixed(tiles)).max() < 1e-2


def test_a_model_of_one_size_is_made_to_take_any():
    """Unless the spec's divisor says that it takes no other."""
    source = keras.Input((16, 16, 16, 4))
    model = keras.Model(source, head(source))
    assert flatten(model, toy_spec()).inputs[0].shape == (None, None, None, None, 4)
    fixed = toy_spec(tile=(16, 16, 16), divisor=(16, 16, 16))
    assert flatten(model, fixed).inputs[0].shape == (None, 16, 16, 16, 4)


def test_the_keras_engine_is_the_model():
    """Channels last in and out, and it says what it is."""
    spec = toy_spec()
    logits = to_logits(unet(spec), spec)
    tiles = np.random.default_rng(0).normal(size=(2, 8, 8, 8, 4)).astype(np.float32)
    engine = keras_engine(logits)
    np.testing.assert_allclose(engine.infer(tiles), logits(tiles), rtol=1e-5, atol=1e-5)
    assert engine.identity.engine == "keras"
    assert engine.identity.version == keras.__version__


class Subclassed(keras.Model):
    """A model whose layers cannot be followed."""

    def call(self, inputs):
        """Pass on."""
        return inputs


def several(outputs):
    source = image(toy_spec())
    return keras.Model(source, [head(source) for _ in range(outputs)])


def ending(layer, **spec):
    source = image(toy_spec())
    return keras.Model(source, layer(source)), toy_spec(**spec)


REFUSED = {
    "a model that is not functional": (lambda: (Subclassed(), toy_spec()), "E_MODEL", "not functional"),
    "several outputs": (lambda: (several(2), toy_spec()), "E_MODEL", "2 outputs"),
    "a 2D model": (
        lambda: (keras.Model(x := keras.Input((8, 8, 4)), layers.Conv2D(3, 1)(x)), toy_spec()),
        "E_MODEL",
        "expected is",
    ),
    "channels first": (
        lambda: ending(lambda x: layers.MaxPooling3D(1, data_format="channels_first")(head(x))),
        "E_MODEL",
        "channels first",
    ),
    "an end in relu": (lambda: ending(lambda x: layers.ReLU()(head(x))), "E_MODEL", "ends in relu"),
    "an end in tanh": (lambda: ending(lambda x: head(x, activation="tanh")), "E_MODEL", "ends in tanh"),
    "softmax over space": (lambda: ending(lambda x: layers.Softmax(axis=1)(head(x))), "E_MODEL", "channels"),
    "no layers": (lambda: ending(lambda x: layers.Identity()(x)), "E_MODEL", "no layers"),
    "a model that only takes one size": (
        lambda: (
            keras.Model(
                x := keras.Input((4, 4, 4, 4)),
                head(layers.Reshape((4, 4, 4, 4))(layers.Dense(256)(layers.Flatten()(x)))),
            ),
            toy_spec(divisor=(2, 2, 2)),
        ),
        "E_MODEL",
        "any size",
    ),
    "a grid that is cut to one size": (
        lambda: ending(lambda x: head(layers.Reshape((4, 4, 4, 4))(x))),
        "E_MODEL",
        "whatever goes in",
    ),
    "other inputs": (
        lambda: ending(head, modalities=toy_spec().modalities[:2]),
        "E_SPEC",
        "maps 4 channels to 3",
    ),
    "other outputs": (lambda: ending(lambda x: head(x, 5)), "E_SPEC", "maps 4 channels to 5"),
    "another activation": (
        lambda: ending(lambda x: head(x, 4, activation="sigmoid"), **SOFTMAX),
        "E_SPEC",
        "ends in sigmoid",
    ),
}


@pytest.mark.parametrize(("make", "code", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_a_model_of_another_form_is_refused(make, code, words):
    """With what was found, under a stable code."""
    model, spec = make()
    with pytest.raises(BundleInvalid, match=words) as caught:
        to_logits(model, spec)
    assert caught.value.code == code


def test_a_keras_file_comes_back(tmp_path):
    """Saved and loaded, a model computes the same."""
    model = unet(toy_spec())
    tiles = np.ones((1, 8, 8, 8, 4), np.float32)
    np.testing.assert_array_equal(saved(model, tmp_path)(tiles), model(tiles))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_and_does_nothing(tmp_path, name):
    """Code in a layer, functions of Python by name, weights elsewhere, older formats: nothing is executed."""
    folder, marker = tmp_path / "in", tmp_path / "marker"
    folder.mkdir()
    path = HOSTILE[name](folder, marker)
    marker.unlink(missing_ok=True)  # making a model runs its code
    with pytest.raises(BundleInvalid) as caught:
        load(path)
    assert caught.value.code == "E_MODEL"
    assert not marker.exists()


@pytest.mark.parametrize("name", ["model.h5", "model.hdf5", "model.pkl", "saved_model"])
def test_other_formats_are_refused_unread(tmp_path, name):
    """Older formats can run code while they load."""
    (tmp_path / name).write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(BundleInvalid, match=r"not a \.keras file") as caught:
        load(tmp_path / name)
    assert caught.value.code == "E_MODEL"


@pytest.mark.parametrize("damage", ["emptied", "cut", "flipped"])
def test_a_damaged_file_is_refused(tmp_path, damage):
    """With a code, not with a traceback, and not with other weights."""
    path = tmp_path / "model.keras"
    unet(toy_spec()).save(path)
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
    path.write_bytes({"emptied": b"", "cut": data[:-100], "flipped": data}[damage])
    with pytest.raises(BundleInvalid) as caught:
        load(path)
    assert caught.value.code == "E_MODEL"


def test_a_missing_file_is_the_users_mistake(tmp_path):
    """Exit status 2."""
    with pytest.raises(UsageRefused) as caught:
        load(tmp_path / "model.keras")
    assert caught.value.code == "E_INPUT_MISSING"
