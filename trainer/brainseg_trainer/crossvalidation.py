"""Five runs, each of which holds out one fold of the patients, and what they say together."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from brainseg_trainer.config import TrainConfig
from brainseg_trainer.fit import Report, fit
from brainseg_trainer.run import RunFolder
from brainseg_trainer.scoring.summary import Summary, summarise
from brainseg_trainer.sources import open_data
from brainseg_trainer.store import FOLDS

__all__ = ["CrossValidation", "cross_validate"]


@dataclass(frozen=True)
class CrossValidation:
    """Dice of every scan, each by the network that never saw its patient."""

    dice: Mapping[str, Mapping[str, float]]
    """Scan -> region -> Dice."""
    folds: Mapping[str, int]
    """Scan -> the fold that held it out."""

    @property
    def regions(self) -> list[str]:
        """What was scored."""
        return list(next(iter(self.dice.values())))

    def summary(self, region: str) -> Summary:
        """Of a region's Dice over all scans."""
        return summarise([scores[region] for scores in self.dice.values()])

    def as_dict(self) -> dict[str, Any]:
        """For ``metrics.json``."""
        return {
            "summary": {region: vars(self.summary(region)) for region in self.regions},
            "scans": {
                scan: {"fold": self.folds[scan], "dice": dict(scores)} for scan, scores in self.dice.items()
            },
        }


def cross_validate(data: Path, folder: Path, config: TrainConfig, report: Report) -> CrossValidation:
    """Train and score five runs in ``folder/fold1`` to ``fold5``; those that are done or begun go on.

    Raises:
        ScanRefused: ``E_TOO_FEW_SCANS`` with fewer than five patients; see ``fit``.
    """
    # Before the first of five runs, not in the middle of them.
    found = open_data(data, config)
    for number in range(1, FOLDS + 1):
        found.divided(_of_fold(config, number))
    dice: dict[str, Mapping[str, float]] = {}
    folds: dict[str, int] = {}
    for number in range(1, FOLDS + 1):
        run = RunFolder(folder / f"fold{number}")
        wanted = _of_fold(config, number)
        if run.config.exists():
            run.go_on(wanted)
        else:
            run.begin(wanted)
        if not run.model.exists():
            fit(data, run, partial(_tell, report, number))
        for scan, scores in run.read_metrics()["validation"]["scans"].items():
            dice[scan], folds[scan] = scores["dice"], number
    result = CrossValidation(dice, folds)
    RunFolder(folder).write_metrics("crossvalidation", result.as_dict())
    return result


def _of_fold(config: TrainConfig, number: int) -> TrainConfig:
    return replace(config, data=replace(config.data, fold=number))


def _tell(report: Report, number: int, stage: str, done: int, total: int, remark: str = "") -> None:
    report(f"fold {number}: {stage}", done, total, remark)
