"""From a Keras model to a bundle: clean ONNX, FP16, and a certificate of parity."""
