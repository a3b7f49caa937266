"""The type of tumour that a network takes a scan for, where it was trained to say so; an estimate only."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from brainseg_runtime.labels import decide
from brainseg_runtime.spec import ModelSpec

__all__ = ["TumourType", "tumour_type"]


@dataclass(frozen=True)
class TumourType:
    """The likeliest type, and the probability of each."""

    name: str
    probabilities: Mapping[str, float]


def tumour_type(logits: NDArray[np.float32], spec: ModelSpec) -> TumourType | None:
    """The type that a network's answer (i, j, k, R) speaks for; None where it found no tumour.

    The last channels hold a logit per type; their softmax is averaged over the voxels that are labelled.
    """
    said = logits[..., -len(spec.types) :][decide(logits, spec) > 0]
    if not len(said):
        return None
    likely = np.exp(said - said.max(axis=-1, keepdims=True), dtype=np.float64)
    shares = (likely / likely.sum(axis=-1, keepdims=True)).mean(axis=0)
    probabilities = {name: round(float(p), 4) for name, p in zip(spec.types, shares, strict=True)}
    return TumourType(spec.types[int(shares.argmax())], probabilities)
