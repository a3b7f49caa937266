"""The engines, one file each, and the one place that picks among them."""
