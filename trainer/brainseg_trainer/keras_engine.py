"""A Keras model as one more engine, so that training is scored through the pipeline that is deployed."""

import keras
import numpy as np
from brainseg_runtime.engines.base import EngineIdentity
from brainseg_runtime.engines.function import FunctionEngine
from numpy.typing import NDArray

__all__ = ["keras_engine"]


def keras_engine(network: keras.Model) -> FunctionEngine:
    """An engine that computes a Keras network (N, i, j, k, C) -> logits (N, i, j, k, R)."""
    # A twin with the same weights: compiling the network itself would be saved with it.
    twin = keras.Model(network.input, network.output)
    # XLA is several times slower than TensorFlow's own kernels on a CPU, and all that JAX has.
    twin.compile(jit_compile=keras.backend.backend() == "jax")

    def infer(tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(twin.predict_on_batch(tiles), dtype=np.float32)

    identity = EngineIdentity(
        engine="keras",
        provider=keras.backend.backend(),
        device=_device(),
        precision="fp32",
        version=keras.__version__,
    )
    return FunctionEngine(infer, identity)


def _device() -> str:
    """Where Keras computes: ``"cpu"``, or an accelerator with its number."""
    first = str(keras.distribution.list_devices()[0])
    return "cpu" if first.startswith("cpu") else first
