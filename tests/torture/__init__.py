"""What brainseg is put through; ``python -m torture`` writes docs/reliability.md."""

from collections.abc import Mapping

from torture import bundles, dicom, faults, memory, mixups, nifti, steady
from torture.rows import Trial

__all__ = ["TRIALS"]

TRIALS: Mapping[str, tuple[str, Trial]] = {
    "nifti-made": ("Bad bytes", nifti.handmade),
    "dicom-made": ("Bad bytes", dicom.handmade),
    "nifti": ("Bad bytes", nifti.mutants),
    "listed": ("Bad bytes", nifti.listed),
    "dicom": ("Bad bytes", dicom.mutants),
    "flips": ("Models", bundles.flips),
    "graphs": ("Models", bundles.graphs),
    "keras": ("Models", bundles.keras_files),
    "mixups": ("Mixed-up input", mixups.mixups),
    "mixups-real": ("Mixed-up input", mixups.real),
    "kills": ("Faults", faults.killed_anywhere),
    "interrupts": ("Faults", faults.interrupted),
    "writes": ("Faults", faults.killed_at_every_write),
    "crowds": ("Faults", faults.crowded),
    "denials": ("Faults", faults.denied),
    "determinism": ("Steadiness", steady.determinism),
    "soak": ("Steadiness", steady.soak),
    "memory": ("Memory", memory.budgets),
}
"""Name -> the part of the page that it belongs to, and the trial."""
