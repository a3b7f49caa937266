"""The proof that travels with a model: how far each form of it is from the Keras model, on whole scans."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Self

from brainseg_runtime.engines.base import EngineIdentity
from brainseg_runtime.errors import BundleInvalid

__all__ = ["BOUNDS", "Bounds", "Certificate", "Parity", "TestScan"]

FORMAT = 1


@dataclass(frozen=True)
class Bounds:
    """What a form of the model must reach."""

    logits: float
    """Largest allowed ``|difference| / max(1, |logit|)``."""
    dice: float
    """Smallest allowed Dice of any region of any scan, against the Keras model's masks."""


BOUNDS: Mapping[str, Bounds] = {
    "fp32": Bounds(1e-3, 0.9999),
    "fp16": Bounds(1e-1, 0.999),
    "bf16": Bounds(1.0, 0.999),
}
"""Per precision. Below fp32 the masks are the criterion; logits are bounded to catch a broken graph."""


@dataclass(frozen=True)
class TestScan:
    """A whole scan that the parity was measured on."""

    scan: str
    regions_ml: Mapping[str, float]
    """Volume of every region in the Keras model's segmentation, in ml: none may be empty."""


@dataclass(frozen=True)
class Parity:
    """One form of the model on one engine, held against the Keras model."""

    graph: str
    """The bundle's file that was run, or ``"tf2onnx"`` for the independent witness."""
    graph_sha256: str
    identity: EngineIdentity
    logits: float
    """Largest ``|difference| / max(1, |logit|)`` over all scans, voxels and channels."""
    dice: Mapping[str, float]
    """Region -> smallest Dice over the scans."""
    proves: str
    """In words, what this measurement shows and what it does not."""

    @property
    def passed(self) -> bool:
        """Whether the measurement keeps to the bounds of its precision."""
        bounds = BOUNDS[self.identity.precision]
        return self.logits <= bounds.logits and min(self.dice.values()) >= bounds.dice


@dataclass(frozen=True)
class Certificate:
    """All that was measured when the bundle was made."""

    reference: str
    """The reference: framework, versions, device."""
    scans: tuple[TestScan, ...]
    parities: tuple[Parity, ...]

    def find(self, graph_sha256: str, identity: EngineIdentity) -> Parity | None:
        """The measurement of this very graph on this engine, provider and precision, if there is one."""
        measured = self.of(graph_sha256, identity.engine, identity.precision)
        return next((parity for parity in measured if parity.identity.provider == identity.provider), None)

    def of(self, graph_sha256: str, engine: str, precision: str) -> tuple[Parity, ...]:
        """The measurements of this very graph on an engine in a precision, one a provider."""
        return tuple(
            parity
            for parity in self.parities
            if (parity.graph_sha256, parity.identity.engine, parity.identity.precision)
            == (graph_sha256, engine, precision)
        )

    def to_json(self) -> str:
        """The certificate as JSON text, each verdict and the bounds it was judged by written out."""
        raw = asdict(self)
        for entry, parity in zip(raw["parities"], self.parities, strict=True):
            entry["passed"] = parity.passed
        bounds = {precision: asdict(bound) for precision, bound in BOUNDS.items()}
        return json.dumps({"format": FORMAT, "bounds": bounds, **raw}, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read a certificate; verdicts are judged anew from the figures.

        Raises:
            BundleInvalid: ``E_BUNDLE_FORMAT`` for text that is no certificate of this format.
        """
        try:
            raw = json.loads(text)
            if raw["format"] != FORMAT:
                raise ValueError(f"format {raw['format']}, this runtime reads {FORMAT}")
            return cls(
                reference=str(raw["reference"]),
                scans=tuple(TestScan(s["scan"], s["regions_ml"]) for s in raw["scans"]),
                parities=tuple(
                    Parity(
                        graph=p["graph"],
                        graph_sha256=p["graph_sha256"],
                        identity=EngineIdentity(**p["identity"]),
                        logits=float(p["logits"]),
                        dice={region: float(value) for region, value in p["dice"].items()},
                        proves=p["proves"],
                    )
                    for p in raw["parities"]
                ),
            )
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise BundleInvalid(
                "E_BUNDLE_FORMAT", f"not a parity certificate: {error}.", "Export the model again."
            ) from error
