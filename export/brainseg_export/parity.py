"""Do the exported graphs segment whole scans as the Keras model does?

Noise, empty masks and saturated outputs agree with almost anything, so only scans count on which the Keras
model finds every region and where many voxels lie near the decision.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
from brainseg_runtime.bundle import Precision
from brainseg_runtime.certificate import Certificate, Parity, TestScan
from brainseg_runtime.engines.base import Engine
from brainseg_runtime.engines.choice import EngineName, make_engine
from brainseg_runtime.errors import BundleInvalid
from brainseg_runtime.labels import decide
from brainseg_runtime.overlap import dice
from brainseg_runtime.preprocess import Prepared, prepare, restore
from brainseg_runtime.spec import ModelSpec, Region
from brainseg_runtime.tiles import predict
from brainseg_runtime.volume import Volume
from numpy.typing import NDArray

from brainseg_export.card import figures

__all__ = ["ENOUGH", "OPTIONAL", "Form", "Reference", "certify", "measure", "reference_scans", "require"]

ENOUGH = 4
"""Scans that a certificate rests on: those with the largest regions, where one voxel decides least."""

CONSIDERED = 12
"""Scans among which these are looked for."""

NEAR = 2.0
"""Logits between a voxel and its decision below which rounding could turn it: probability 0.12 to 0.88."""

NEAR_SHARE = 1e-3
"""Smallest number of such voxels, as a share of the region."""


@dataclass(frozen=True, eq=False)
class Form:
    """One form of the model that is held against Keras."""

    graph: str
    """The bundle's file, or ``"tf2onnx"`` for the witness."""
    data: bytes
    precision: Precision
    proves: str
    engine: EngineName = "ort"
    device: str = "cpu"


@dataclass(frozen=True, eq=False)
class Reference:
    """A scan, and what the Keras model makes of it."""

    volume: Volume
    prepared: Prepared
    logits: NDArray[np.float32]
    """(i, j, k, R), on the network's grid."""
    labels: NDArray[np.uint8]
    """(I, J, K), on the scan's own grid, before small pieces are dropped."""

    def mask(self, region: Region) -> NDArray[np.bool_]:
        """The Keras model's mask of a region, (I, J, K)."""
        return np.isin(self.labels, region.labels)

    def smallest(self, spec: ModelSpec) -> int:
        """Voxels of the smallest region."""
        return min(int(np.count_nonzero(self.mask(region))) for region in spec.regions)


def reference_scans(
    volumes: Iterable[Volume], keras: Engine, spec: ModelSpec, say: Callable[[str], None]
) -> tuple[Reference, ...]:
    """Scans on which agreement means something, as the Keras model segments them.

    Raises:
        BundleInvalid: ``E_PARITY`` where there is none, with what is wrong with each scan.
    """
    found: list[Reference] = []
    unfit: list[str] = []
    for volume in islice(volumes, CONSIDERED):
        reference = _segment(volume, keras, spec)
        if problems := _problems(reference, spec):
            unfit.append(f"{volume.scan}: {', '.join(problems)}")
            say(f"parity: scan {volume.scan} proves nothing ({', '.join(problems)})")
            continue
        # No more are kept than are used: a scan and its logits are hundreds of megabytes.
        found = sorted([*found, reference], key=lambda r: r.smallest(spec), reverse=True)[:ENOUGH]
    if not found:
        raise BundleInvalid(
            "E_PARITY",
            f"no scan can show parity; as Keras segments them: {'; '.join(unfit) or 'no scan at all'}.",
            "Give scans with tumour in every region (--scans), or train the model longer.",
        )
    return tuple(found)


def certify(
    forms: Sequence[Form], references: Sequence[Reference], spec: ModelSpec, keras: str
) -> Certificate:
    """Measure every form against the Keras model on the same scans."""
    scans = tuple(
        TestScan(
            r.volume.scan,
            {
                region.name: round(float(r.mask(region).sum()) * r.volume.geometry.voxel_volume / 1000.0, 4)
                for region in spec.regions
            },
        )
        for r in references
    )
    return Certificate(keras, scans, tuple(measure(form, references, spec) for form in forms))


OPTIONAL = frozenset({"bf16"})
"""Precisions that a model may fail: the certificate says so, and the runtime does not run them."""


def measure(form: Form, references: Sequence[Reference], spec: ModelSpec) -> Parity:
    """The largest difference of logits and the smallest Dice of every region, over all scans."""
    difference, overlaps = 0.0, {region.name: 1.0 for region in spec.regions}
    with closing(make_engine(form.engine, form.data, spec, form.precision, form.device)) as engine:
        for reference in references:
            logits = predict(reference.prepared.data, engine, spec)
            scale = np.maximum(1.0, np.abs(reference.logits))
            difference = max(difference, float((np.abs(logits - reference.logits) / scale).max()))
            labels = restore(logits, reference.prepared.placement, partial(decide, spec=spec))
            for region in spec.regions:
                overlap = dice(np.isin(labels, region.labels), reference.mask(region))
                overlaps[region.name] = min(overlaps[region.name], overlap)
    digest = hashlib.sha256(form.data).hexdigest()
    return Parity(form.graph, digest, engine.identity, difference, overlaps, form.proves)


def require(certificate: Certificate) -> None:
    """Refuse a certificate with a form that misses its bounds, ``E_PARITY`` with the figures."""
    needed = (parity for parity in certificate.parities if parity.identity.precision not in OPTIONAL)
    failed = [parity for parity in needed if not parity.passed]
    if failed:
        raise BundleInvalid(
            "E_PARITY",
            f"{'; '.join(map(_difference, failed))}.",
            "Nothing was written. Report the model's layers; --via tf2onnx takes the other converter.",
        )


def _segment(volume: Volume, engine: Engine, spec: ModelSpec) -> Reference:
    prepared = prepare(volume, spec)
    logits = predict(prepared.data, engine, spec)
    return Reference(
        volume, prepared, logits, restore(logits, prepared.placement, partial(decide, spec=spec))
    )


def _problems(reference: Reference, spec: ModelSpec) -> list[str]:
    """Why a scan proves nothing; empty for one that does."""
    problems = []
    for region in spec.regions:
        if not reference.mask(region).any():
            problems.append(f"region {region.name} is empty")
            continue
        margin = _margin(reference.logits, region, spec)
        near = int(np.count_nonzero(np.abs(margin) < NEAR)) / max(1, int(np.count_nonzero(margin >= 0)))
        if near < NEAR_SHARE:
            problems.append(
                f"region {region.name} is saturated, {near:.1e} of its voxels are near the decision"
            )
    return problems


def _margin(logits: NDArray[np.float32], region: Region, spec: ModelSpec) -> NDArray[np.float32]:
    """How far every voxel is inside a region, in logits, (..., R) -> (...); negative outside."""
    if spec.activation == "sigmoid":
        threshold = np.log(region.threshold / (1.0 - region.threshold))
        return logits[..., spec.regions.index(region)] - np.float32(threshold)
    inside = np.isin(spec.channels, region.labels)
    margin: NDArray[np.float32] = logits[..., inside].max(axis=-1) - logits[..., ~inside].max(axis=-1)
    return margin


def _difference(parity: Parity) -> str:
    identity = parity.identity
    return f"{parity.graph} on {identity.engine} ({identity.precision}) differs from Keras: {figures(parity)}"
