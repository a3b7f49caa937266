"""Scores as text for a terminal, as CSV and as JSON."""

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import numpy as np

from brainseg_trainer.scoring.folder import Answer, ScanScore
from brainseg_trainer.scoring.summary import Summary, summarise

__all__ = ["dice_table", "page", "seconds_table", "summaries", "to_csv", "to_json"]


def dice_table(scores: Sequence[ScanScore]) -> str:
    """Dice per scan and region, then mean, its 95 % interval and median."""
    regions = list(scores[0].regions)
    rows = [[score.scan, *(f"{score.regions[region].dice:.4f}" for region in regions)] for score in scores]
    sums = [summarise([score.regions[region].dice for score in scores]) for region in regions]
    rows.append([])
    rows.append(["mean", *(f"{entry.mean:.4f}" for entry in sums)])
    rows.append(["95 % interval", *(f"{entry.low:.3f}-{entry.high:.3f}" for entry in sums)])
    rows.append(["median", *(f"{entry.median:.4f}" for entry in sums)])
    return _aligned([["Dice", *regions], *rows])


def page(answers: Sequence[Answer], scores: Sequence[ScanScore]) -> str:
    """What a reader sees first: Dice, seconds per stage, and the files to open."""
    first = next((answer for answer in answers if answer.picture), answers[0])
    files = [path for path in (first.mask, first.record, first.picture) if path]
    shown = "\n".join(["Open, for example:", *(f"  {path}" for path in files)])
    return "\n\n".join(part for part in (dice_table(scores), seconds_table(answers), shown) if part)


def seconds_table(answers: Sequence[Answer]) -> str:
    """Median seconds per stage over the scans that say how long they took; empty if none does."""
    stages = list(dict.fromkeys(stage for answer in answers for stage in answer.seconds))
    medians = [
        float(np.median([answer.seconds[stage] for answer in answers if stage in answer.seconds]))
        for stage in stages
    ]
    totals = [sum(answer.seconds.values()) for answer in answers if answer.seconds]
    if not totals:
        return ""
    rows = [[stage, f"{seconds:.3f}"] for stage, seconds in zip(stages, medians, strict=True)]
    return _aligned([["stage", "median s"], *rows, ["all", f"{np.median(totals):.3f}"]])


def summaries(scores: Sequence[ScanScore]) -> dict[str, dict[str, Summary]]:
    """Region -> measure -> its summary over scans."""
    return {
        region: {
            name: summarise([score.regions[region].as_dict()[name] for score in scores]) for name in names
        }
        for region, names in ((region, m.as_dict()) for region, m in scores[0].regions.items())
    }


def to_json(scores: Sequence[ScanScore]) -> str:
    """All measures of all scans and their summaries; null where a measure has no value."""
    contents = {
        "scans": {
            score.scan: {region: _nulled(m.as_dict()) for region, m in score.regions.items()}
            for score in scores
        },
        "summary": {
            region: {name: _nulled(asdict(summary)) for name, summary in measures.items()}
            for region, measures in summaries(scores).items()
        },
    }
    return json.dumps(contents, indent=1, allow_nan=False) + "\n"


def to_csv(scores: Sequence[ScanScore]) -> str:
    """A row per scan and region, a column per measure; empty where a measure has no value."""
    text = io.StringIO()
    columns = ["scan", "region", *next(iter(scores[0].regions.values())).as_dict()]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for score in scores:
        for region, measures in score.regions.items():
            writer.writerow({"scan": score.scan, "region": region, **_nulled(measures.as_dict())})
    return text.getvalue()


def _nulled(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns side by side, the first to the left, the others to the right."""
    widths = [max(len(row[c]) for row in rows if row) for c in range(len(rows[0]))]
    sides: list[Callable[[str, int], str]] = [str.ljust, *[str.rjust] * (len(widths) - 1)]
    return "\n".join(
        "  ".join(side(cell, width) for side, cell, width in zip(sides, row, widths, strict=True)).rstrip()
        if row
        else ""
        for row in rows
    )
