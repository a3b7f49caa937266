"""Keras -> ONNX, layer by layer: channels first, batch norm folded, no node that is not needed.

Each layer class has one emitter in ``LAYERS``. An emitter writes the layer's nodes and returns its
output; it counts the grid's axes on the layer, so that a 2D class is one more line in the table.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import onnx
from brainseg_runtime.errors import BundleInvalid
from brainseg_runtime.spec import ModelSpec
from keras import layers
from numpy.typing import NDArray
from onnx import shape_inference

from brainseg_export.graph import GraphWriter, check_allowed, checked
from brainseg_export.model import Call, activation_of, calls

__all__ = ["LAYERS", "walk"]

Layer = Any
Model = Any
Array = NDArray[np.float32]
Pads = tuple[tuple[int, int], ...]
"""Per grid axis: zeros before and after."""


@dataclass(frozen=True)
class Tensor:
    """A tensor of the graph, and zeros around it that no node has written yet."""

    name: str
    pads: Pads = ()


@dataclass
class Walk:
    """What is known while the layers are walked."""

    graph: GraphWriter
    readers: Counter[int]
    """id of a Keras tensor -> how many layers read it."""
    folding: dict[str, int] = field(default_factory=dict)
    """Tensor that a convolution made and one layer reads -> the kernel's axis of those channels."""
    multiples: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    """Tensors whose grid must be a multiple of these strides for the padding to be Keras' own."""

    def plain(self, tensor: Tensor, layer: Layer) -> str:
        """The tensor's name, its pending zeros written as a node."""
        if not tensor.pads:
            return tensor.name
        before, after = zip(*tensor.pads, strict=True)
        pads = self.graph.weight(f"{layer.name}/pads", np.array([0, 0, *before, 0, 0, *after], np.int64))
        return self.graph.node("Pad", f"{layer.name}/pad", [tensor.name, pads])


Emitter = Callable[[Walk, Call, list[Tensor]], Tensor]


def walk(model: Model, spec: ModelSpec) -> onnx.ModelProto:
    """Write a flat float32 Keras model (see ``model.to_logits``) as an ONNX graph.

    Shapes: N C i j k -> N R i j k; N, i, j, k are free.

    Raises:
        BundleInvalid: ``E_LAYER`` for a layer, or an option of one, that has no counterpart;
            ``E_SPEC`` where the spec's divisor lets through sizes that the padding is not exact for.
    """
    uses = list(calls(model))
    state = Walk(GraphWriter(spec), Counter(id(tensor) for call in uses for tensor in call.inputs))
    state.readers[id(model.outputs[0])] += 1
    tensors = {id(model.inputs[0]): Tensor(spec.input_name)}
    for call in uses:
        emit = _emitter(call.layer)
        output = emit(state, call, [tensors[id(tensor)] for tensor in call.inputs])
        # Whoever else reads it wants it as it is. (A layer that writes no node hands its input on.)
        if state.readers[id(call.output)] != 1:
            state.folding.pop(output.name, None)
        tensors[id(call.output)] = output
    last = tensors[id(model.outputs[0])]
    proto = state.graph.proto(state.plain(last, call.layer))
    check_allowed(checked(proto))
    _check_sizes(proto, spec, state.multiples)
    return proto


def _emitter(layer: Layer) -> Emitter:
    kind = type(layer)
    emit = LAYERS.get(kind) or OPERATIONS.get(f"{kind.__module__}.{kind.__name__}")
    if emit is None:
        raise _unknown(layer, "the walker does not know this layer")
    return emit


def _unknown(layer: Layer, why: str) -> BundleInvalid:
    return BundleInvalid(
        "E_LAYER",
        f"layer {layer.name!r} ({type(layer).__name__}): {why}.",
        "Replace the layer, or export with --via tf2onnx, which gives a larger and slower graph.",
    )


# --- convolutions ---------------------------------------------------------------------------------


def _conv(state: Walk, call: Call, inputs: list[Tensor]) -> Tensor:
    layer, (source,) = call.layer, inputs
    if source.pads and layer.padding == "valid":
        name, pads = source.name, source.pads
    else:
        name = state.plain(source, layer)
        pads = _window_pads(state, name, layer, layer.kernel_size, layer.dilation_rate)
    # (k..., C / groups, R) -> (R, C / groups, k...)
    kernel = np.moveaxis(np.asarray(layer.kernel), (-1, -2), (0, 1))
    return _convolution(
        state,
        call,
        "Conv",
        name,
        kernel,
        pads,
        dilations=list(layer.dilation_rate),
        group=layer.groups,
    )


def _conv_transpose(state: Walk, call: Call, inputs: list[Tensor]) -> Tensor:
    layer, (source,) = call.layer, inputs
    pairs = list(zip(layer.kernel_size, layer.strides, strict=True))
    if any(d != 1 for d in layer.dilation_rate) or layer.output_padding is not None:
        raise _unknown(layer, "dilation and output_padding are not written")
    if any(kernel < stride for kernel, stride in pairs):
        raise _unknown(layer, "a kernel smaller than the stride is not written")
    # Keras cuts "same" to exactly size x stride, as the gradient of a convolution that was padded so.
    same = layer.padding == "same"
    pads = tuple(_split(kernel - stride) if same else (0, 0) for kernel, stride in pairs)
    # (k..., R, C) -> (C, R, k...)
    kernel = np.moveaxis(np.asarray(layer.kernel), (-1, -2), (0, 1))
    return _convolution(state, call, "ConvTranspose", state.plain(source, layer), kernel, pads)


def _convolution(
    state: Walk, call: Call, op: str, source: str, kernel: Array, pads: Pads, **attributes: object
) -> Tensor:
    layer = call.layer
    before, after = zip(*pads, strict=True)
    inputs = [source, state.graph.weight(f"{layer.name}/kernel", kernel)]
    if layer.use_bias:
        inputs.append(state.graph.weight(f"{layer.name}/bias", np.asarray(layer.bias)))
    output = state.graph.node(
        op,
        layer.name,
        inputs,
        kernel_shape=list(layer.kernel_size),
        strides=list(layer.strides),
        pads=[*before, *after],
        **attributes,
    )
    if activation_of(layer.activation) != "linear":
        return _activate(state, call, output)
    state.folding[output] = 0 if op == "Conv" else 1
    return Tensor(output)


def _window_pads(
    state: Walk, source: str, layer: Layer, window: tuple[int, ...], dilation: tuple[int, ...]
) -> Pads:
    """Zeros that Keras' ``padding`` stands for, on a grid that is a multiple of the strides."""
    if layer.padding == "valid":
        return ((0, 0),) * len(window)
    if layer.padding != "same":
        raise _unknown(layer, f"padding {layer.padding!r} is not written")
    if max(layer.strides) > 1:
        state.multiples.append((source, tuple(layer.strides)))
    return tuple(
        _split(max((k - 1) * d + 1 - s, 0)) for k, d, s in zip(window, dilation, layer.strides, strict=True)
    )


def _split(total: int) -> tuple[int, int]:
    """Zeros before and after: where they cannot be equal, TensorFlow puts one more after."""
    return total // 2, total - total // 2


# --- normalisation --------------------------------------------------------------------------------


def _batch_norm(state: Walk, call: Call, inputs: list[Tensor]) -> Tensor:
    """In inference a scale and a shift per channel: part of the convolution before it, else Mul and Add."""
    layer, (source,) = call.layer, inputs
    _check_channel_axis(call, layer.axis)
    variance = np.asarray(layer.moving_variance, dtype=np.float64)
    gamma, beta = _affine(layer, variance.size)
    scale = gamma / np.sqrt(variance + layer.epsilon)
    shift = beta - np.asarray(layer.moving_mean, dtype=np.float64) * scale
    name = state.plain(source, layer)
    if name in state.folding:
        _fold(state.graph, name, state.folding[name], scale, shift)
        return Tensor(name)
    along = (-1, *(1,) * (len(call.output.shape) - 2))
    factor = state.graph.weight(f"{layer.name}/scale", scale.reshape(along).astype(np.float32))
    offset = state.graph.weight(f"{layer.name}/shift", shift.reshape(along).astype(np.float32))
    scaled = state.graph.node("Mul", f"{layer.name}/mul", [name, factor])
    return Tensor(state.graph.node("Add", layer.name, [scaled, offset]))


def _fold(
    graph: GraphWriter, output: str, axis: int, scale: NDArray[np.float64], shift: NDArray[np.float64]
) -> None:
    """Multiply a convolution's kernel and bias by ``scale`` per output channel and add ``shift``."""
    (node,) = (node for node in graph.nodes if node.output[0] == output)
    kernel = graph.weights[node.input[1]].astype(np.float64)
    along = [1] * kernel.ndim
    along[axis] = -1
    graph.weights[node.input[1]] = (kernel * scale.reshape(along)).astype(np.float32)
    if len(node.input) < 3:
        node.input.append(graph.weight(f"{output}/bias", np.zeros(scale.size, np.float32)))
    bias = graph.weights[node.input[2]].astype(np.float64)
    graph.weights[node.input[2]] = (bias * scale + shift).astype(np.float32)


def _instance_norm(state: Walk, call: Call, inputs: list[Tensor]) -> Tensor:
    layer, (source,) = call.layer, inputs
    _check_channel_axis(call, layer.axis)
    channels = call.output.shape[-1]
    if layer.groups not in (-1, channels):
        raise _unknown(
            layer, f"{layer.groups} groups over {channels} channels; only one per channel is written"
        )
    gamma, beta = (values.astype(np.float32) for values in _affine(layer, channels))
    weights = [
        state.graph.weight(f"{layer.name}/gamma", gamma),
        state.graph.weight(f"{layer.name}/beta", beta),
    ]
    name = state.plain(source, layer)
    return Tensor(
        state.graph.node("InstanceNormalization", layer.name, [name, *weights], epsilon=layer.epsilon)
    )


def _affine(layer: Layer, channels: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gamma and beta of a norm, 1 and 0 where it has none."""
    gamma = np.ones(channels) if layer.gamma is None else np.asarray(layer.gamma, dtype=np.float64)
    beta = np.zeros(channels) if layer.beta is None else np.asarray(layer.beta, dtype=np.float64)
    return gamma, beta


# --- activations ----------------------------------------------------------------------------------

ACTIVATIONS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "relu": ("Relu", {}),
    "leaky_relu": ("LeakyRelu", {"alpha": 0.2}),  # Keras' default for the function; the layer's is 0.3
    "elu": ("Elu", {"alpha": 1.0}),
    "tanh": ("Tanh", {}),
    "sigmoid": ("Sigmoid", {}),
    "softmax": ("Softmax", {"axis": 1}),
}
"""Keras' activation functions as operators."""


def _activate(state: Walk, call: Call, source: str) -> Tensor:
    """Write the activation that a layer was given as an option."""
    layer, function = call.layer, call.layer.activation
    name = activation_of(function)
    if name == "linear":
        return Tensor(source)
    if isinstance(function, keras.Layer):
        return _emitter(function)(state, Call(function, (call.output,), call.output), [Tensor(source)])
    output = f"{layer.name}/{name}"
    if name == "silu":
        return Tensor(
            state.graph.node("Mul", output, [source, state.graph.node("Sigmoid", output, [source])])
        )
    if name not in ACTIVATIONS or function is not getattr(keras.activations, name):
        raise _unknown(layer, f"its activation {name!r} is not written")
    op, attributes = ACTIVATIONS[name]
    return Tensor(state.graph.node(op, output, [source], **attributes))


def _activation(state: Walk, call: Call, inputs: list[Tensor]) -> Tensor:
    return _activate(state, call, state.plain(inputs[0], call.layer))


def _relu(state: Walk, call: Call, inputs: list[Tensor]) -> Tensor:
    layer = call.layer
    if layer.max_value is not None or layer.threshold != 0:
        raise _unknown(layer, "max_value and threshold are not written")
    return _leaky(state, call, inputs)


def _leaky(state: Walk, call: Call, inputs: list[Tensor]) -> Tensor:
    layer, slope = call.layer, float(call.layer.negative_slope)
    name = state.plain(inputs[0], layer)
    if slope == 0.0:
        return Tensor(state.graph.node("Relu", layer.name, [name]))
    return Tensor(state.graph.node("LeakyRelu", layer.name, [name], alpha=slope))


def _prelu(state: Walk, call: Call, inputs: list[Tensor]) -> Tensor:
    layer = call.layer
    slopes = np.moveaxis(np.asarray(layer.alpha), -1, 0)
    if slopes.size != slopes.shape[0]:
        raise _unknown(layer, "a slope per voxel; share it over the grid (shared_axes)")
    name = state.plain(inputs[0], layer)
    return Tensor(
        state.graph.node("PRelu", layer.name, [name, state.graph.weight(f"{layer.name}/slope", slopes)])
    )


def _elu(state: Walk, call: Call, inputs: list[Tensor]) -> Tensor:
    name = state.plain(inputs[0], call.layer)
    return Tensor(state.graph.node("Elu", call.layer.name, [name], alpha=float(call.layer.alpha)))


def _softmax(state: Walk, call: Call, inputs: list[Tensor]) -> Tensor:
    _check_channel_axis(call, call.layer.axis)
    return Tensor(state.graph.node("Softmax", call.layer.name, [state.plain(inputs[0], call.layer)], axis=1))


def _sigmoid(state: Walk, call: Call, inputs: list[Tensor]) -> Tensor:
    return Tensor(state.graph.node("Sigmoid", call.layer.name, [state.plain(inputs[0], call.layer)]))


def _plain_relu(state: Walk, call: Call, inputs: list[Tensor]) -> Tensor:
    return Tensor(state.graph.node("Relu", call.layer.name, [state.plain(inputs[0], call.layer)]))


# --- joining, pooling, resizing -------------------------------------------------------------------


def _chain(op: str) -> Emitter:
    """An operator of two inputs for a layer of many."""

    def emit(state: Walk, call: Call, inputs: list[Tensor]) -> Tensor:
        layer = call.layer
        if len(inputs) < 2 or len({len(tensor.shape) for tensor in call.inputs}) != 1:
            raise _unknown(layer, "a constant, or tensors of different rank, are not written")
        result, *others = (state.plain(tensor, layer) for tensor in inputs)
        for other in others:
            result = state.graph.node(op, layer.name, [result, other])
        return Tensor(result)

    return emit


def _concatenate(state: Walk, call: Call, inputs: list[Tensor]) -> Tensor:
    _check_channel_axis(call, call.layer.axis)
    names = [state.plain(tensor, call.layer) for tensor in inputs]
    return Tensor(state.graph.node("Concat", call.layer.name, names, axis=1))


def _pool(op: str) -> Emitter:
    """Padding never counts: it is below every maximum and outside every mean, in Keras and in ONNX."""

    def emit(state: Walk, call: Call, inputs: list[Tensor]) -> Tensor:
        layer = call.layer
        name = state.plain(inputs[0], layer)
        pads = _window_pads(state, name, layer, layer.pool_size, (1,) * len(layer.pool_size))
        before, after = zip(*pads, strict=True)
        return Tensor(
            state.graph.node(
                op,
                layer.name,
                [name],
                kernel_shape=list(layer.pool_size),
                strides=list(layer.strides),
                pads=[*before, *after],
            )
        )

    return emit


def _upsample(state: Walk, call: Call, inputs: list[Tensor]) -> Tensor:
    layer = call.layer
    scales = state.graph.weight(f"{layer.name}/scales", np.array([1, 1, *layer.size], np.float32))
    return Tensor(
        state.graph.node(
            "Resize",
            layer.name,
            [state.plain(inputs[0], layer), "", scales],
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
    )


def _zero_padding(state: Walk, call: Call, inputs: list[Tensor]) -> Tensor:
    """Nothing yet: a valid convolution takes the zeros into its own padding."""
    (source,) = inputs
    own = tuple((int(before), int(after)) for before, after in call.layer.padding)
    old = source.pads or ((0, 0),) * len(own)
    summed = tuple((a + c, b + d) for (a, b), (c, d) in zip(old, own, strict=True))
    return Tensor(source.name, summed)


def _pass(state: Walk, call: Call, inputs: list[Tensor]) -> Tensor:
    """A layer that does nothing in inference."""
    return inputs[0]


def _check_channel_axis(call: Call, axis: int) -> None:
    if axis not in (-1, len(call.output.shape) - 1):
        raise _unknown(call.layer, f"axis {axis} is not the channels'")


LAYERS: Mapping[type, Emitter] = {
    layers.Conv3D: _conv,
    layers.Conv3DTranspose: _conv_transpose,
    layers.BatchNormalization: _batch_norm,
    layers.GroupNormalization: _instance_norm,
    layers.Activation: _activation,
    layers.ReLU: _relu,
    layers.LeakyReLU: _leaky,
    layers.PReLU: _prelu,
    layers.ELU: _elu,
    layers.Softmax: _softmax,
    layers.Add: _chain("Add"),
    layers.Multiply: _chain("Mul"),
    layers.Concatenate: _concatenate,
    layers.MaxPooling3D: _pool("MaxPool"),
    layers.AveragePooling3D: _pool("AveragePool"),
    layers.UpSampling3D: _upsample,
    layers.ZeroPadding3D: _zero_padding,
    layers.Dropout: _pass,
    layers.SpatialDropout3D: _pass,
    layers.AlphaDropout: _pass,
    layers.GaussianDropout: _pass,
    layers.GaussianNoise: _pass,
    layers.ActivityRegularization: _pass,
    layers.Identity: _pass,
}
"""Every Keras layer that the clean graph has a counterpart for."""

OPERATIONS: Mapping[str, Emitter] = {
    "keras.src.ops.numpy.Add": _chain("Add"),
    "keras.src.ops.numpy.Multiply": _chain("Mul"),
    "keras.src.ops.numpy.Concatenate": _concatenate,
    "keras.src.ops.nn.Relu": _plain_relu,
    "keras.src.ops.nn.LeakyRelu": _leaky,
    "keras.src.ops.nn.Sigmoid": _sigmoid,
    "keras.src.ops.nn.Softmax": _softmax,
}
"""What ``a + b`` or ``keras.ops.relu(x)`` leave in a model. By name: Keras keeps these classes to itself,
and a name that it changes ends in a refusal."""


def _check_sizes(
    proto: onnx.ModelProto, spec: ModelSpec, multiples: list[tuple[str, tuple[int, ...]]]
) -> None:
    """Refuse a divisor that lets through a grid which comes out of another size, or is padded otherwise.

    Two sizes suffice: where each stride divides both, all grids in between are straight lines in the size.
    """
    for extra in (0, 1):
        sizes = tuple(t + extra * d for t, d in zip(spec.tile, spec.divisor, strict=True))
        grids = _grids(proto, sizes)
        for name, strides in multiples:
            if any(size % stride for size, stride in zip(grids[name], strides, strict=True)):
                raise _wrong_divisor(spec, f"a grid of {grids[name]} meets strides {strides}")
        if grids[spec.output_name] != sizes:
            raise _wrong_divisor(spec, f"a tile {sizes} comes out as {grids[spec.output_name]}")


def _grids(proto: onnx.ModelProto, sizes: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The grid of every tensor for an input of these sizes."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(proto)
    for axis, size in zip(fixed.graph.input[0].type.tensor_type.shape.dim[2:], sizes, strict=True):
        axis.dim_value = size
    # The output's free sizes must not stand against the inferred ones.
    fixed.graph.output[0].type.tensor_type.ClearField("shape")
    try:
        graph = shape_inference.infer_shapes(fixed, strict_mode=True, data_prop=True).graph
    except shape_inference.InferenceError as error:
        raise BundleInvalid(
            "E_SPEC", f"a tile {sizes} does not pass the network: {error}.", "Correct tile and divisor."
        ) from error
    return {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim[2:])
        for value in [*graph.input, *graph.value_info, *graph.output]
    }


def _wrong_divisor(spec: ModelSpec, why: str) -> BundleInvalid:
    return BundleInvalid(
        "E_SPEC",
        f"divisor {spec.divisor} is not the network's: {why}.",
        "Set divisor to the product of the strides along each axis, and tile to a multiple of it.",
    )
