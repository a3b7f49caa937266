"""From which probability on a voxel belongs to a region: chosen on scans that the network never saw."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
from brainseg_runtime.errors import UsageRefused
from brainseg_runtime.resample import background
from brainseg_runtime.scans import Scan
from brainseg_runtime.segmenter import Segmenter
from brainseg_runtime.spec import ModelSpec
from brainseg_runtime.volume import Volume
from numpy.typing import NDArray

from brainseg_trainer.dataset import TrainingScans
from brainseg_trainer.evaluate import dice_where_present, evaluate
from brainseg_trainer.keras_engine import keras_engine
from brainseg_trainer.scoring.calibration import Histogram, best_threshold, brier, calibration_error, count

__all__ = ["Tuning", "histograms", "tune"]

Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Tuning:
    """What was tried and what came of it, region by region."""

    spec: ModelSpec
    """With the thresholds that are best through the whole pipeline."""
    thresholds: Mapping[str, float]
    """The best of each region alone."""
    before: Mapping[str, float]
    """Mean Dice, where a scan has the region, with the thresholds as they were."""
    after: Mapping[str, float]
    """The same with the best of each region alone."""
    brier: Mapping[str, float]
    """Over the voxels of the brain."""
    calibration_error: Mapping[str, float]
    """Over the voxels of the brain."""

    @property
    def is_better(self) -> bool:
        """Whether the regions' mean Dice rose."""
        return float(np.mean(list(self.after.values()))) > float(np.mean(list(self.before.values())))

    def as_dict(self) -> dict[str, Any]:
        """For ``metrics.json``."""
        return {
            "thresholds": {region.name: region.threshold for region in self.spec.regions},
            "tried": dict(self.thresholds),
            "mean_dice_before": dict(self.before),
            "mean_dice_tried": dict(self.after),
            "brier": dict(self.brier),
            "calibration_error": dict(self.calibration_error),
        }


def tune(
    network: keras.Model,
    spec: ModelSpec,
    source: TrainingScans,
    trained_on: Collection[str],
    report: Report,
) -> Tuning:
    """Choose each region's threshold on scans with truth, and measure calibration.

    The thresholds change only if the mean Dice of whole scans, through the pipeline that is deployed,
    rises with them. ``report`` is told the stage and how many of how many are done.

    Raises:
        UsageRefused: ``E_USAGE`` where the network was trained on a scan, or has no thresholds.
    """
    seen = sorted({scan.id for scan in source.scans} & set(trained_on))
    if seen:
        raise UsageRefused(
            "E_USAGE", f"the network was trained on {', '.join(seen[:5])}.", "Give scans that it never saw."
        )
    if spec.activation != "sigmoid":
        raise UsageRefused("E_USAGE", "a softmax model has no thresholds.", "Use evaluate.")
    found = histograms(network, spec, source, source.scans, report)
    chosen = {region: best_threshold(scans) for region, scans in found.items()}
    tuned = replace(
        spec, regions=tuple(replace(region, threshold=chosen[region.name]) for region in spec.regions)
    )

    def scored(with_spec: ModelSpec, stage: str) -> dict[str, float]:
        return dice_where_present(
            evaluate(network, with_spec, source, source.scans, lambda done, total: report(stage, done, total))
        )

    before = scored(spec, "scoring before")
    tuning = Tuning(
        spec=tuned,
        thresholds=chosen,
        before=before,
        after=before if tuned == spec else scored(tuned, "scoring after"),
        brier={region: brier(scans) for region, scans in found.items()},
        calibration_error={region: calibration_error(scans) for region, scans in found.items()},
    )
    return tuning if tuning.is_better else replace(tuning, spec=spec)


def histograms(
    network: keras.Model, spec: ModelSpec, source: TrainingScans, scans: Sequence[Scan], report: Report
) -> dict[str, list[Histogram]]:
    """Region -> a histogram of its probability per scan, over the voxels of the brain and of the truth."""
    found: dict[str, list[Histogram]] = {region.name: [] for region in spec.regions}
    with Segmenter(spec, keras_engine(network)) as segmenter:
        for done, scan in enumerate(scans, start=1):
            volume = source.read(scan)
            maps = segmenter.segment(volume, probabilities=True).probabilities
            if maps is None:
                raise RuntimeError("the segmenter kept no probabilities")
            truth = source.truth(scan, volume.geometry)
            counted = _brain(volume) | (truth > 0)
            for r, region in enumerate(spec.regions):
                mask = np.isin(truth[counted], region.labels)
                found[region.name].append(count(maps[..., r][counted], mask))
            report("measuring probabilities", done, len(scans))
    return found


def _brain(volume: Volume) -> NDArray[np.bool_]:
    """Where any modality differs from its background."""
    channels = [volume.data[..., c] for c in range(volume.data.shape[3])]
    brain: NDArray[np.bool_] = np.any([channel != background(channel) for channel in channels], axis=0)
    return brain
