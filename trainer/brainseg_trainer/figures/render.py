"""All pictures of a run, and all of a data set; what cannot be drawn says why, and the others are drawn."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from brainseg_runtime.errors import BrainsegError
from brainseg_runtime.segmenter import Segmenter

from brainseg_trainer.dataset import find_training_scans
from brainseg_trainer.figures.cases import Case, cases
from brainseg_trainer.figures.comparison import draw_comparison, draw_turning
from brainseg_trainer.figures.curves import draw_curves
from brainseg_trainer.figures.gallery import draw_classes, draw_slices, draw_tumours, draw_volumes
from brainseg_trainer.figures.scores import draw_agreement, draw_boxes, draw_thresholds
from brainseg_trainer.keras_engine import keras_engine
from brainseg_trainer.networks import load_network
from brainseg_trainer.run import RunFolder
from brainseg_trainer.sources import DataSet
from brainseg_trainer.tune import histograms

__all__ = ["render_data", "render_run"]

Say = Callable[[str], None]
SHOWN = 12
"""Scans in a gallery."""


def render_run(run: RunFolder, say: Say) -> list[Path]:
    """Every picture of a finished run, from its history, its scores and the held-out scans that it kept.

    Raises:
        UsageRefused: ``E_RUN`` where there is no run.
    """
    spec = run.read_spec()
    made: list[Path] = []

    def draw(name: str, picture: Callable[[Path], None]) -> None:
        _draw(run.figures / name, picture, say, made)

    draw("curves.png", lambda path: draw_curves(run.read_history(), path))
    validation = run.read_metrics()["validation"]["scans"]
    dice = {r.name: [s["dice"][r.name] for s in validation.values()] for r in spec.regions}
    draw("dice.png", lambda path: draw_boxes(dice, path))
    volumes = {r.name: _volumes(validation.values(), r.name) for r in spec.regions}
    draw("volumes.png", lambda path: draw_agreement(volumes, path))
    kept = find_training_scans(run.parity, spec)
    network = load_network(run.model)
    with Segmenter(spec, keras_engine(network)) as segmenter:
        found = list(cases(kept, kept.scans, spec, {}, segmenter))
    draw("comparison.png", lambda path: draw_comparison(found, path))
    draw("turning.gif", lambda path: draw_turning(found[0], path))
    draw("slices.png", lambda path: draw_slices(found, path))
    draw("tumours.png", lambda path: draw_tumours(found, path))
    if spec.activation == "sigmoid":
        chosen = {region.name: region.threshold for region in spec.regions}
        counted = histograms(network, spec, kept, kept.scans, lambda *_: None)
        draw("thresholds.png", lambda path: draw_thresholds(counted, chosen, path))
    else:
        say("thresholds.png: a softmax model has none")
    return made


def render_data(data: DataSet, out: Path, say: Say) -> list[Path]:
    """Every picture of a data set: what it holds, slices with truth, and tumours."""
    made: list[Path] = []

    def draw(name: str, picture: Callable[[Path], None]) -> None:
        _draw(out / name, picture, say, made)

    scans = data.scans.scans
    chosen = [scans[n] for n in np.linspace(0, len(scans) - 1, min(SHOWN, len(scans))).astype(int)]
    found = list(cases(data.scans, chosen, data.spec, data.kinds))
    draw("slices.png", lambda path: draw_slices(found, path))
    draw("tumours.png", lambda path: draw_tumours(found, path))
    if any(data.kinds.values()):
        draw("classes.png", lambda path: draw_classes(_counts(data), path))
    else:
        draw("volumes.png", lambda path: draw_volumes(_all_volumes(data), path))
    return made


def _draw(path: Path, picture: Callable[[Path], None], say: Say, made: list[Path]) -> None:
    try:
        picture(path)
    except BrainsegError as error:
        say(f"{path.name}: {error}")
        return
    made.append(path)


def _volumes(scans: Any, region: str) -> tuple[list[float], list[float]]:  # noqa: ANN401  (JSON)
    told = [scan["volumes_ml"][region] for scan in scans]
    return [pair["truth"] for pair in told], [pair["answer"] for pair in told]


def _counts(data: DataSet) -> dict[str, dict[str, int]]:
    """How many scans and patients there are of each type."""
    kinds = sorted(set(data.kinds.values()))
    scans = Counter(data.kinds.values())
    patients = Counter({(origin.patient, origin.kind) for origin in data.origins.values()})
    return {
        "scans": {kind: scans[kind] for kind in kinds},
        "patients": {kind: sum(k == kind for _, k in patients) for kind in kinds},
    }


def _all_volumes(data: DataSet) -> dict[str, list[float]]:
    """Region -> its volume in ml in every scan."""
    found: dict[str, list[float]] = {region.name: [] for region in data.spec.regions}
    for case in _each(data):
        for region, ml in case.labels.volumes_ml().items():
            found[region].append(ml)
    return found


def _each(data: DataSet) -> Iterator[Case]:
    return cases(data.scans, data.scans.scans, data.spec, data.kinds)
