"""A scan on a GPU, from raw intensities to labels: four kernels, and what they are told."""
