"""The known-answer test: does this engine, on this machine, compute what was certified?"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from brainseg_runtime.bundle import Bundle, Golden, Precision
from brainseg_runtime.engines.base import Engine
from brainseg_runtime.engines.choice import ENGINES, EngineName, covered, default_device, make_engine
from brainseg_runtime.errors import BrainsegError, BundleInvalid
from brainseg_runtime.gpu import NoDriver, gpus

__all__ = ["TOLERANCE", "Verdict", "check", "everywhere"]

TOLERANCE = {"fp32": 3e-3, "fp16": 1e-1, "bf16": 1.0}
"""Largest ``|difference| / max(1, |logit|)``; the golden logits themselves are rounded to FP16 (5e-4)."""


@dataclass(frozen=True)
class Verdict:
    """What became of the known-answer test on one engine in one precision."""

    engine: str
    device: str
    precision: str
    certified: bool
    """Whether the bundle's certificate lets it run at all."""
    code: str | None
    """The error's code where the test was missed or could not be made."""
    detail: str

    @property
    def broken(self) -> bool:
        """Whether something that should be right is wrong; what is not installed is not wrong."""
        return self.certified and self.code is not None and not self.absent

    @property
    def absent(self) -> bool:
        """Whether the engine, or what it runs on, is not here."""
        return self.code in ("E_ENGINE_MISSING", "E_ENGINE_DEVICE")


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


def everywhere(bundle: Bundle) -> Iterator[Verdict]:
    """The test on every engine that brainseg has, on every device of its kind, certified or not."""
    for name, kind in ENGINES.items():
        for device in _devices(name):
            for precision in kind.precisions:
                yield _verdict(bundle, name, precision, device)


def _devices(name: EngineName) -> Sequence[str]:
    """The device that an engine takes by itself, and the GPUs that it could take."""
    try:
        here = [gpu.device for gpu in gpus() if ENGINES[name].runs_on(gpu.device)]
    except NoDriver:
        here = []
    return list(dict.fromkeys([default_device(name), *here]))


def _verdict(bundle: Bundle, name: EngineName, precision: Precision, device: str) -> Verdict:
    certified = covered(bundle, name, precision, device)
    try:
        with closing(make_engine(name, bundle.graph(precision), bundle.spec, precision, device)) as engine:
            difference = check(engine, bundle.golden())
            identity = engine.identity
    except BrainsegError as error:
        remedy = f" {error.remedy}" if error.code == "E_ENGINE_MISSING" else ""
        return Verdict(name, device, precision, certified, error.code, error.received + remedy)
    detail = f"{difference:.1e} <= {TOLERANCE[precision]:g}, {identity.version} on {identity.provider}"
    return Verdict(name, device, precision, certified, None, detail)
