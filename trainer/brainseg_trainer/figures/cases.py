"""A scan, its truth, and perhaps a network's answer, cut out and turned as one looks at it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from brainseg_runtime.preview import shown_modalities
from brainseg_runtime.scans import Scan
from brainseg_runtime.segmenter import Segmenter
from brainseg_runtime.spec import ModelSpec
from brainseg_runtime.views import Scene, scene
from brainseg_runtime.volume import Segmentation, Volume

from brainseg_trainer.dataset import TrainingScans

__all__ = ["Case", "cases", "largest_cut"]

SHIFT = 16
"""Truth and answer share a byte while they are cut out; no task of ours has as many labels."""


@dataclass(frozen=True, eq=False)
class Case:
    """One scan to be shown."""

    scan: str
    kind: str
    """Type of tumour, where it is known."""
    truth: Scene
    labels: Segmentation
    """The truth on the scan's own grid."""
    modality: str
    """The one that is shown."""
    answer: Scene | None = None
    """The same scene with a network's labels."""
    answered: Segmentation | None = None

    @property
    def title(self) -> str:
        """The scan's name, and its type where it has one."""
        return f"{self.scan}, {self.kind}" if self.kind else self.scan


def cases(
    source: TrainingScans,
    scans: Sequence[Scan],
    spec: ModelSpec,
    kinds: dict[str, str],
    segmenter: Segmenter | None = None,
) -> Iterator[Case]:
    """Scans with truth, segmented where there is a segmenter."""
    for scan in scans:
        volume = source.read(scan)
        labels, geometry = source.truth(scan, volume.geometry), volume.geometry
        truth = Segmentation(labels, geometry, spec.label_names, spec.region_labels, scan.id)
        answer = segmenter.segment(volume) if segmenter else None
        yield _case(volume, truth, answer, spec, kinds.get(scan.id, ""))


def _case(
    volume: Volume, truth: Segmentation, answer: Segmentation | None, spec: ModelSpec, kind: str
) -> Case:
    both = truth.labels if answer is None else truth.labels + SHIFT * answer.labels
    modality = shown_modalities(spec)[0]
    cut = scene(volume, replace(truth, labels=both), spec)
    seen = replace(cut, labels=cut.labels % SHIFT)
    if answer is None:
        return Case(truth.scan, kind, seen, truth, modality)
    return Case(truth.scan, kind, seen, truth, modality, replace(cut, labels=cut.labels // SHIFT), answer)


def largest_cut(labels: np.ndarray, axis: int) -> int:
    """The slice of labels (L, P, I) across an axis with the most tumour; the middle one without any."""
    areas = (labels > 0).sum(axis=tuple(a for a in range(3) if a != axis))
    return int(areas.argmax()) if areas.any() else labels.shape[axis] // 2
