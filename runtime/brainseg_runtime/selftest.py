"""The known-answer test: does this engine, on this machine, compute what was certified?"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from brainseg_runtime.bundle import Bundle, Golden, Precision
from brainseg_runtime.engines.base import Engine
from brainseg_runtime.engines.choice import ENGINES, EngineName, make_engine
from brainseg_runtime.errors import BrainsegError, BundleInvalid

__all__ = ["TOLERANCE", "Verdict", "check", "everywhere"]

TOLERANCE = {"fp32": 3e-3, "fp16": 1e-1, "bf16": 1.0}
"""Largest ``|difference| / max(1, |logit|)``; the golden logits themselves are rounded to FP16 (5e-4)."""


@dataclass(frozen=True)
class Verdict:
    """What became of the known-answer test on one engine in one precision."""

    engine: str
    precision: str
    certified: bool
    """Whether the bundle's certificate lets it run at all."""
    code: str | None
    """The error's code where the test was missed or could not be made."""
    detail: str

    @property
    def broken(self) -> bool:
        """Whether something that should be right is wrong; what is not installed is not wrong."""
        return self.certified and self.code not in (None, "E_ENGINE_MISSING", "E_ENGINE_DEVICE")


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


def everywhere(bundle: Bundle, device: str = "cpu") -> Iterator[Verdict]:
    """The test on every engine that brainseg has, in every precision, certified or not."""
    for name, kind in ENGINES.items():
        for precision in kind.precisions:
            yield _verdict(bundle, name, precision, device)


def _verdict(bundle: Bundle, name: EngineName, precision: Precision, device: str) -> Verdict:
    measured = bundle.certificate.of(bundle.graph_sha256(precision), name, precision)
    certified = any(parity.passed for parity in measured)
    try:
        with closing(make_engine(name, bundle.graph(precision), bundle.spec, precision, device)) as engine:
            difference = check(engine, bundle.golden())
            identity = engine.identity
    except BrainsegError as error:
        remedy = f" {error.remedy}" if error.code == "E_ENGINE_MISSING" else ""
        return Verdict(name, precision, certified, error.code, error.received + remedy)
    detail = f"{difference:.1e} <= {TOLERANCE[precision]:g}, {identity.version} on {identity.provider}"
    return Verdict(name, precision, certified, None, detail)
