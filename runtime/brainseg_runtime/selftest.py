"""The known-answer test: does this engine, on this machine, compute what was certified?"""

import numpy as np

from brainseg_runtime.bundle import Golden
from brainseg_runtime.engines.base import Engine
from brainseg_runtime.errors import BundleInvalid

__all__ = ["TOLERANCE", "check"]

TOLERANCE = {"fp32": 3e-3, "fp16": 1e-1, "bf16": 1.0}
"""Largest ``|difference| / max(1, |logit|)``; the golden logits themselves are rounded to FP16 (5e-4)."""


def check(engine: Engine, golden: Golden) -> float:
    """Run the golden tile and return the largest ``|difference| / max(1, |logit|)``.

    It costs one small tile, so it is run whenever a model is loaded, and nothing need be remembered.

    Raises:
        BundleInvalid: ``E_SELFTEST`` beyond the tolerance.
    """
    identity = engine.identity
    logits = engine.infer(golden.tile[None])[0]
    if logits.shape != golden.logits.shape:
        difference = float("inf")
    else:
        scale = np.maximum(1.0, np.abs(golden.logits))
        difference = float((np.abs(logits - golden.logits) / scale).max())
    if not difference <= TOLERANCE[identity.precision]:
        raise BundleInvalid(
            "E_SELFTEST",
            f"{identity.engine} {identity.version} ({identity.provider}, {identity.precision}) misses the "
            f"bundle's golden tile by {difference:.2g}, allowed is {TOLERANCE[identity.precision]:g}.",
            "Use another engine or version; do not use results of this one.",
        )
    return difference
