"""What Keras computes with: it must be said before Keras is imported, so nothing here imports it."""

import os

from brainseg_trainer.config import Backend

__all__ = ["set_backend"]


def set_backend(backend: Backend = "tensorflow") -> None:
    """Choose the backend of this process, whatever Keras' own settings say."""
    os.environ["KERAS_BACKEND"] = backend
    # TensorFlow's notes on CPU features go past Python's logging; this is its own switch for them.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # On a CPU without AVX-512 TensorFlow leaves oneDNN off, and its own gradients of 3-D convolutions took
    # up to 28 times as long (measured: one of stride 2, AVX2, two cores).
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
