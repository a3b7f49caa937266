"""A scan on a GPU, from raw intensities to labels: six kernels, and what they are told."""
