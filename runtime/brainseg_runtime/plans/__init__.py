"""TensorRT plans: built on this machine for its GPU, kept by its user, never taken from outside."""
