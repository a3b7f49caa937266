"""How good a network is: whole scans, in their own space, through the pipeline that is deployed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
from brainseg_runtime.overlap import dice
from brainseg_runtime.scans import Scan
from brainseg_runtime.segmenter import Segmenter
from brainseg_runtime.spec import ModelSpec

from brainseg_trainer.dataset import TrainingScans
from brainseg_trainer.keras_engine import keras_engine

__all__ = ["Score", "dice_where_present", "evaluate", "mean_dice", "metrics"]


@dataclass(frozen=True)
class Score:
    """How well one scan was segmented."""

    scan: str
    dice: Mapping[str, float]
    """Region -> Dice; 1 where neither truth nor answer holds the region."""
    volumes_ml: Mapping[str, tuple[float, float]]
    """Region -> its volume in the truth and in the answer."""
    said: str = ""
    """The type of tumour that the network takes it for; empty for most networks, and without a tumour."""
    kind: str = ""
    """The type that it is, where the data say it."""


def evaluate(
    network: keras.Model,
    spec: ModelSpec,
    source: TrainingScans,
    scans: Sequence[Scan],
    report: Callable[[int, int], None],
    kinds: Mapping[str, str] | None = None,
) -> list[Score]:
    """Score a Keras network on scans with truth.

    ``report`` is told how many of how many are done; ``kinds``: scan -> type of tumour.
    """
    scores = []
    with Segmenter(spec, keras_engine(network)) as segmenter:
        for done, scan in enumerate(scans, start=1):
            volume = source.read(scan)
            answer = segmenter.segment(volume)
            truth = source.truth(scan, volume.geometry)
            overlap = {
                region.name: dice(answer.mask(region.name), np.isin(truth, region.labels))
                for region in spec.regions
            }
            meant = replace(answer, labels=truth).volumes_ml()
            volumes = {region: (meant[region], ml) for region, ml in answer.volumes_ml().items()}
            said = (answer.record.get("type") or {}).get("name", "")
            scores.append(Score(scan.id, overlap, volumes, said, (kinds or {}).get(scan.id, "")))
            report(done, len(scans))
    return scores


def mean_dice(scores: Sequence[Score]) -> dict[str, float]:
    """Region -> mean Dice over scans."""
    return {region: float(np.mean([s.dice[region] for s in scores])) for region in scores[0].dice}


def dice_where_present(scores: Sequence[Score]) -> dict[str, float]:
    """Region -> mean Dice over the scans whose truth has it: what networks and thresholds are chosen by.

    Where the truth has none, a single voxel decides between 0 and 1, and a few such scans are a lottery.
    """
    found = {}
    for region in scores[0].dice:
        there = [score.dice[region] for score in scores if score.volumes_ml[region][0] > 0]
        found[region] = float(np.mean(there or [score.dice[region] for score in scores]))
    return found


def metrics(scores: Sequence[Score]) -> dict[str, Any]:
    """Scores as ``metrics.json`` holds them."""
    regions = list(scores[0].dice)
    # One that found no tumour has told no type, and is wrong.
    typed = [score for score in scores if score.kind] if any(score.said for score in scores) else []
    return {
        "mean_dice": mean_dice(scores),
        "median_dice": {r: float(np.median([s.dice[r] for s in scores])) for r in regions},
        **({"type_accuracy": float(np.mean([s.said == s.kind for s in typed]))} if typed else {}),
        "scans": {
            score.scan: {
                "dice": dict(score.dice),
                "volumes_ml": {
                    region: {"truth": round(truth, 4), "answer": round(answer, 4)}
                    for region, (truth, answer) in score.volumes_ml.items()
                },
                **({"type": {"said": score.said, "is": score.kind}} if score in typed else {}),
            }
            for score in scores
        },
    }
