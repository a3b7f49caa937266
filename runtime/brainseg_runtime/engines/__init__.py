"""The engines, one file each: tiles in, logits out."""
