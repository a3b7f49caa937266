"""Several models that answer as one: what they must have in common, and what is made of the rest."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from hashlib import sha256

import numpy as np

from brainseg_runtime.bundle import Bundle
from brainseg_runtime.errors import UsageRefused
from brainseg_runtime.spec import ModelSpec

__all__ = ["identity_of", "joint_spec"]

OWN = ("name", "tile", "halo", "working_bytes", "regions")
"""What may differ between the members of an ensemble."""


def joint_spec(specs: Sequence[ModelSpec]) -> ModelSpec:
    """One specification for all: the first one's, with mean thresholds and the widest halo.

    Raises:
        UsageRefused: ``E_USAGE`` naming what differs and must not.
    """
    first = specs[0]
    for other in specs[1:]:
        one, two = ({k: v for k, v in asdict(spec).items() if k not in OWN} for spec in (first, other))
        differing = [key for key in one if one[key] != two[key]]
        if other.region_labels != first.region_labels:
            differing.append("regions")
        if differing:
            raise UsageRefused(
                "E_USAGE",
                f"{first.name} and {other.name} make no ensemble: they differ in {', '.join(differing)}.",
                "Give bundles of one task, grid and scheme.",
            )
    thresholds = np.mean([[region.threshold for region in spec.regions] for spec in specs], axis=0)
    return replace(
        first,
        name=" + ".join(spec.name for spec in specs),
        regions=tuple(
            replace(region, threshold=float(t)) for region, t in zip(first.regions, thresholds, strict=True)
        ),
        halo=0 if any(spec.halo == 0 for spec in specs) else max(spec.halo for spec in specs),
        working_bytes=max(spec.working_bytes for spec in specs),
    )


def identity_of(bundles: Sequence[Bundle], spec: ModelSpec) -> dict[str, str]:
    """Name and SHA-256 of what answers: a bundle's own, or those of several, which follow from theirs."""
    if len(bundles) == 1:
        return {"name": bundles[0].spec.name, "sha256": bundles[0].sha256}
    digest = sha256("\n".join(bundle.sha256 for bundle in bundles).encode()).hexdigest()
    return {"name": spec.name, "sha256": digest}
