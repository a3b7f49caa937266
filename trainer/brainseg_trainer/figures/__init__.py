"""Pictures of data and of runs, drawn without a display."""

from brainseg_trainer.figures.curves import draw_curves

__all__ = ["draw_curves"]
