"""Heads with real anatomy and real tumours, simulated without end: what the default model is trained on.

Anatomy comes from label maps of healthy heads, the shapes and looks of tumours from those that experts
outlined (Billot et al. 2023, SynthSeg; Zhang et al. 2023, PL-BTS).
"""

from pathlib import Path

from brainseg_runtime.extras import require

__all__ = ["HELD_OUT", "TRAINING", "is_simulation", "require_jax"]

TRAINING, HELD_OUT = "training.npz", "held_out.npz"
"""Files of a simulation's folder: ingredients to train on, and others to hold out. Scans lie beside them."""


def is_simulation(folder: Path) -> bool:
    """Whether a folder holds ingredients of simulated heads."""
    return (folder / TRAINING).is_file()


def require_jax() -> None:
    """Refuse early where heads cannot be drawn.

    Raises:
        EngineUnavailable: ``E_EXTRA_MISSING`` with the line that installs it.
    """
    require("simulation", ("jax",), "brainseg-trainer[jax]")
