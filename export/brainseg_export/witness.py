"""The independent witness: the same model as tf2onnx converts it, a larger graph by other hands."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import onnx
from brainseg_runtime.errors import BundleInvalid, EngineUnavailable
from brainseg_runtime.spec import ModelSpec

from brainseg_export.graph import OPSET, check_domains, checked, finish

__all__ = ["convert"]

Model = Any


def convert(model: Model, spec: ModelSpec) -> onnx.ModelProto:
    """Convert a flat float32 Keras model (see ``model.to_logits``) with tf2onnx.

    Shapes: N C i j k -> N R i j k, as the clean graph; transposes stand at both ends.

    Raises:
        EngineUnavailable: ``E_ENGINE_MISSING`` where Keras runs on another backend than TensorFlow.
        BundleInvalid: ``E_LAYER`` for a layer that tf2onnx cannot express in ONNX's own operators.
    """
    if keras.backend.backend() != "tensorflow":
        raise EngineUnavailable(
            "E_ENGINE_MISSING",
            f"tf2onnx needs Keras on TensorFlow, this is Keras on {keras.backend.backend()}.",
            "Run the export with Keras' TensorFlow backend.",
        )
    import tensorflow as tf
    import tf2onnx

    shape = model.inputs[0].shape
    grid = range(2, len(shape))

    def logits(image: Any) -> Any:  # noqa: ANN401  (TensorFlow's tensors)
        last = tf.transpose(image, (0, *grid, 1))
        return tf.transpose(model(last, training=False), (0, len(grid) + 1, *(n - 1 for n in grid)))

    signature = tf.TensorSpec((None, shape[-1], *shape[1:-1]), tf.float32, name=spec.input_name)
    with _quiet():
        try:
            proto, _ = tf2onnx.convert.from_function(
                tf.function(logits, jit_compile=False), input_signature=[signature], opset=OPSET
            )
        # tf2onnx raises what its hundred handlers raise.
        except Exception as error:
            raise BundleInvalid(
                "E_LAYER", f"tf2onnx cannot convert the model: {error}.", "Replace the layer it names."
            ) from error
    proto = _named(proto, spec)
    check_domains(proto)
    return checked(proto)


def _named(proto: onnx.ModelProto, spec: ModelSpec) -> onnx.ModelProto:
    """The graph with the spec's tensor names, in the pinned versions."""
    graph = proto.graph
    names = {graph.input[0].name: spec.input_name, graph.output[0].name: spec.output_name}
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in [*graph.input, *graph.output]:
        value.name = names[value.name]
    graph.name = spec.name
    return finish(graph, spec)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep tf2onnx' progress to itself; what it cannot do is raised, not logged."""
    logger = logging.getLogger("tf2onnx")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
