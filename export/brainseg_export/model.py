"""A Keras model as it is exported: loaded without running foreign code, flat, float32, down to its logits."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from brainseg_runtime.engines.base import EngineIdentity
from brainseg_runtime.engines.function import FunctionEngine
from brainseg_runtime.errors import BundleInvalid, UsageRefused
from brainseg_runtime.spec import ModelSpec
from numpy.typing import NDArray

__all__ = ["Call", "activation_of", "calls", "flatten", "keras_engine", "load", "to_logits"]

Model = Any
Tensor = Any
Layer = Any
# Keras publishes no types: a model, a symbolic tensor and a layer are Any, under a name that says which.


@dataclass(frozen=True, eq=False)
class Call:
    """One use of a layer: a shared layer has several."""

    layer: Layer
    inputs: tuple[Tensor, ...]
    output: Tensor
    """The first one: no layer that is exported by hand has more."""


def load(path: Path) -> Model:
    """Load a ``.keras`` file; nothing in it is executed.

    Raises:
        UsageRefused: ``E_INPUT_MISSING`` where there is no such file.
        BundleInvalid: ``E_MODEL`` for another format, a damaged file, and a model with code inside.
    """
    if not path.is_file():
        raise UsageRefused("E_INPUT_MISSING", f"there is no file {path}.", "Name a .keras file.")
    if path.suffix != ".keras":
        raise BundleInvalid(
            "E_MODEL",
            f"{path.name} is not a .keras file, and older formats can run code while they load.",
            "Save the model with model.save('model.keras').",
        )
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    # Keras lets through whatever its layers' constructors raise on what a file tells them.
    except Exception as error:
        raise BundleInvalid(
            "E_MODEL",
            f"Keras cannot load {path.name} safely: {_first_line(error)}.",
            "Use Keras' own layers only (no Lambda, no custom class) and save the model again.",
        ) from error


def calls(model: Model) -> Iterator[Call]:
    """The uses of layers in a flat functional model, each after those that it reads from."""
    for node in _nodes(model):
        yield Call(node.operation, tuple(node.input_tensors), node.outputs[0])


def flatten(model: Model, spec: ModelSpec) -> Model:
    """The same function as one flat float32 model with a grid of any size, sharing nothing with the original.

    Inner models are inlined. An axis stays fixed only where the spec's divisor says that the network
    takes no other size.

    Raises:
        BundleInvalid: ``E_MODEL`` for a model that is not functional, has several inputs or outputs, or
            cannot be rebuilt.
    """
    if not _is_functional(model):
        raise _refused("the model is not functional, so its layers cannot be followed", FUNCTIONAL)
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise _refused(
            f"the model has {len(model.inputs)} inputs and {len(model.outputs)} outputs, not one of each",
            "Stack the modalities as channels of one input; leave auxiliary outputs out: "
            "keras.Model(model.input, model.outputs[0]).",
        )
    shape = model.inputs[0].shape
    if len(shape) != len(spec.tile) + 2:
        raise _refused(
            f"the model takes {shape}, expected is (N, i, j, k, C)", "Use 3D layers, channels last."
        )
    sizes = [n if n == divisor else None for n, divisor in zip(shape[1:-1], spec.divisor, strict=True)]
    try:
        image = keras.Input((*sizes, shape[-1]), dtype="float32", name=spec.input_name)
        (output,) = _replay(model, [image], {})
        return keras.Model(image, output)
    # As above: constructors and shape rules of arbitrary layers.
    except Exception as error:
        raise _refused(
            f"the model cannot be rebuilt in float32 for a grid of any size: {_first_line(error)}",
            "Build it with Input((None, None, None, C)); or, if it only takes one size, make that size "
            "the spec's tile and divisor.",
        ) from error


def to_logits(model: Model, spec: ModelSpec) -> Model:
    """The model as it is exported: flat, float32, and without the sigmoid or softmax at its end.

    Raises:
        BundleInvalid: ``E_MODEL`` for a model of another form, ``E_SPEC`` where channels or activation
            are not those of the spec.
    """
    flat = flatten(model, spec)
    for call in calls(flat):
        if getattr(call.layer, "data_format", "channels_last") != "channels_last":
            raise _refused(
                f"layer {call.layer.name} is channels first",
                "Rebuild the model channels last and copy the weights: their shapes are the same.",
            )
    flat, found = _strip(flat)
    channels = flat.inputs[0].shape[-1], flat.outputs[0].shape[-1]
    expected = len(spec.modalities), spec.output_channels
    if channels != expected or len(flat.outputs[0].shape) != len(flat.inputs[0].shape):
        raise _disagrees(f"the model maps {channels[0]} channels to {channels[1]}, the spec says {expected}")
    grids = flat.inputs[0].shape[1:-1], flat.outputs[0].shape[1:-1]
    if any(after not in (None, before) for before, after in zip(*grids, strict=True)):
        raise _refused(
            f"the model gives a grid {grids[1]}, whatever goes in",
            "Make that size the spec's tile and divisor.",
        )
    if found not in (None, spec.activation):
        raise _disagrees(f"the model ends in {found}, the spec says {spec.activation}")
    return flat


def activation_of(function: Any) -> str:  # noqa: ANN401  (a Keras function)
    """The name of a Keras activation function or operation: ``"linear"``, ``"relu"``, ``"sigmoid"``, ..."""
    if function is None:
        return "linear"
    return str(getattr(function, "__name__", type(function).__name__))


def keras_engine(model: Model) -> FunctionEngine:
    """A Keras model as the runtime's engine, on the CPU whatever else there is, and never through XLA."""
    # XLA on CPU is many times slower, and is another program than the one that the user trained.
    model.compile(jit_compile=False)
    backend = keras.backend.backend()

    def infer(tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        with keras.device("cpu:0"):
            return np.asarray(model.predict_on_batch(np.ascontiguousarray(tiles)), dtype=np.float32)

    return FunctionEngine(infer, EngineIdentity("keras", backend, "cpu", "fp32", keras.__version__))


FUNCTIONAL = "Build it as keras.Model(inputs, outputs) or keras.Sequential."


def _nodes(model: Model) -> Iterator[Any]:
    graph = getattr(model, "_functional", None) or model
    # Depth runs from the outputs; Keras computes a model in this same order.
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        for node in graph._nodes_by_depth[depth]:
            if not node.is_input:
                yield node


def _is_functional(operation: Layer) -> bool:
    graph = getattr(operation, "_functional", None) or operation
    return hasattr(graph, "_nodes_by_depth")


def _replay(model: Model, inputs: list[Tensor], clones: dict[int, Layer]) -> list[Tensor]:
    """Call float32 copies of a model's layers on new inputs, in the same order."""
    tensors = dict(zip(map(id, model.inputs), inputs, strict=True))
    for node in _nodes(model):
        args, kwargs = node.arguments.fill_in(tensors)
        if _is_functional(node.operation):
            outputs = _replay(node.operation, keras.tree.flatten(args), clones)
        else:
            outputs = keras.tree.flatten(_clone(node.operation, clones)(*args, **kwargs))
            _copy_weights(node.operation, clones)
        tensors.update(zip(map(id, node.outputs), outputs, strict=True))
    return [tensors[id(output)] for output in model.outputs]


def _clone(operation: Layer, clones: dict[int, Layer]) -> Layer:
    if not isinstance(operation, keras.Layer):
        return operation
    if id(operation) not in clones:
        config = _in_float32(operation.get_config())
        # Two inlined models may each have a layer of the same name.
        if config["name"] in {clone.name for clone in clones.values()}:
            config["name"] = f"{config['name']}_{len(clones)}"
        clones[id(operation)] = type(operation).from_config(config)
    return clones[id(operation)]


def _in_float32(config: Any) -> Any:  # noqa: ANN401  (whatever Keras puts in a config)
    """A layer's config, and those of layers inside it, with the mixed precision taken out."""
    if isinstance(config, dict):
        return {key: "float32" if key == "dtype" else _in_float32(value) for key, value in config.items()}
    return config


def _copy_weights(operation: Layer, clones: dict[int, Layer]) -> None:
    if id(operation) in clones:
        clones[id(operation)].set_weights(operation.get_weights())


def _strip(flat: Model) -> tuple[Model, str | None]:
    """The model without its final activation, and the name of what was taken off."""
    made_by = {id(call.output): call for call in calls(flat)}
    output = flat.outputs[0]
    while (call := made_by.get(id(output))) is not None and _is_identity(call.layer):
        output = call.inputs[0]
    if call is None:
        raise _refused("the model has no layers", FUNCTIONAL)
    name = _final_activation(call).lower()
    if name == "linear":
        return flat, None
    if name not in ("sigmoid", "softmax"):
        raise _refused(
            f"the model ends in {name}, which is neither logits nor sigmoid nor softmax",
            "Make the last layer linear.",
        )
    if not _is_activation_only(call.layer):
        if sum(other.layer is call.layer for other in made_by.values()) > 1:
            raise _refused(f"the last layer {call.layer.name} is used twice with its {name}", "Use it once.")
        # The layer is this model's own copy.
        call.layer.activation = keras.activations.linear
        return keras.Model(flat.inputs[0], call.output), name
    return keras.Model(flat.inputs[0], call.inputs[0]), name


def _final_activation(call: Call) -> str:
    layer = call.layer
    if isinstance(layer, keras.layers.Softmax) or type(layer).__name__ == "Softmax":
        if layer.axis not in (-1, len(call.output.shape) - 1):
            raise _refused(f"the softmax {layer.name} is not over the channels", "Use axis -1.")
        return "softmax"
    if type(layer).__name__ in ("Sigmoid", "Relu", "ReLU", "LeakyReLU", "PReLU", "ELU"):
        return type(layer).__name__
    return activation_of(getattr(layer, "activation", None))


def _is_activation_only(layer: Layer) -> bool:
    return isinstance(layer, keras.layers.Activation) or not hasattr(layer, "activation")


def _is_identity(layer: Layer) -> bool:
    if isinstance(layer, keras.layers.Activation):
        return activation_of(layer.activation) == "linear"
    return isinstance(layer, keras.layers.Identity | keras.layers.Dropout)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")


def _refused(what: str, remedy: str) -> BundleInvalid:
    return BundleInvalid("E_MODEL", f"{what}.", remedy)


def _disagrees(what: str) -> BundleInvalid:
    return BundleInvalid("E_SPEC", f"{what}.", "Correct spec.json, or give the model that belongs to it.")
