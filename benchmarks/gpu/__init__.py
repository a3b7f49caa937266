"""A GPU measured: the network beside PyTorch's, whole scans, a folder; README.md says how to start it."""
