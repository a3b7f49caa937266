"""A scan that stays on a GPU: raw intensities go there once, and what was decided comes back.

The kernels' arithmetic is that of ``prepare``, ``predict`` and ``restore``, bit for bit; what they are told
comes from the same ``Placement`` and ``Tiling``.
"""

from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from brainseg_runtime.engines.base import DeviceEngine, not_finite
from brainseg_runtime.engines.timed import Deadline
from brainseg_runtime.kernels.card import Card
from brainseg_runtime.kernels.steps import Steps, Uploaded
from brainseg_runtime.memory import Back, Plan
from brainseg_runtime.preprocess import Examined
from brainseg_runtime.spec import ModelSpec

__all__ = ["Decided", "Resident", "comes_back"]

Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Decided:
    """What a GPU decided of a scan."""

    labels: NDArray[np.uint8]
    """(I, J, K), before specks are dropped."""
    counts: NDArray[np.int64]
    """(regions, 3): voxels at or above each of ``certainty.levels``."""


def comes_back(spec: ModelSpec, probabilities: bool) -> Back:
    """Labels, unless the host needs the logits themselves.

    It does for the odds of softmax models, for types of tumours and for maps of probabilities: they take
    exponentials, whose last bits differ from one library to the next.
    """
    return "labels" if spec.activation == "sigmoid" and not spec.types and not probabilities else "logits"


@dataclass(frozen=True, eq=False)
class Resident:
    """An engine, and the card in whose memory it computes."""

    engine: DeviceEngine
    card: Card

    def compute(
        self, data: Array, examined: Examined, spec: ModelSpec, plan: Plan, deadline: Deadline | None = None
    ) -> Decided | Array:
        """A raw scan (I, J, K, C) -> what comes back by the plan: labels, or the grid's logits (i, j, k, R).

        Tiles are computed a batch at a time; memory does not grow with their number.

        Raises:
            BudgetExceeded: ``E_MEMORY``; ``E_TIMEOUT`` before a pass, or after the last, beyond the deadline.
            EngineUnavailable: ``E_ENGINE_FAILED``, also for logits that are not finite.
        """
        card, tiling, grid = self.card, plan.tiling, examined.placement.grid
        channels, regions = len(spec.modalities), spec.output_channels
        batch = min(plan.batch, len(tiling))
        card.begin()
        # In this order from scan to scan, the largest first, so that memory that is kept fits again.
        scan = Uploaded.of(data, card.put)
        tiles = card.zeros(4 * batch * channels * tiling.voxels)
        answers = card.zeros(4 * batch * regions * tiling.voxels)
        logits = card.zeros(4 * regions * prod(grid))
        brain = card.zeros(prod(examined.placement.box_shape))
        bad = card.zeros(4)
        steps = Steps(spec, examined.placement, examined.statistics, tiling, card.put)
        card.run("foreground", *steps.foreground(scan, brain))
        for first in range(0, len(tiling), batch):
            if deadline is not None:
                deadline.require()
            count = min(batch, len(tiling) - first)
            card.run("gather", *steps.gather(scan, brain, first, count, tiles))
            self.engine.infer_at(tiles, answers, (count, channels, *tiling.tile))
            card.run("check", *steps.check(answers, count, bad))
            card.run("blend", *steps.blend(answers, first, count, logits))
        if deadline is not None:
            deadline.require()
        if card.get(bad, (1,), np.int32).any():
            raise not_finite(self.engine.identity)
        if plan.back == "labels":
            return self._decided(steps, logits)
        return np.moveaxis(card.get(logits, (regions, *grid), np.float32), 0, -1)

    def _decided(self, steps: Steps, logits: int) -> Decided:
        """What the grid's logits (R, i, j, k) on the card say."""
        card, (i, j, k) = self.card, steps.placement.scan.shape
        labels, lines = card.zeros(i * j * k), card.zeros(4 * prod(steps.lines))
        card.run("decide", *steps.decide(logits, labels))
        card.run("count", *steps.count(logits, lines))
        reached = card.get(lines, steps.lines, np.int32)
        return Decided(card.get(labels, (i, j, k), np.uint8), reached.sum(axis=(2, 3), dtype=np.int64))
