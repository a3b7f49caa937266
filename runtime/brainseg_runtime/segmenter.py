"""A model, opened and ready: one volume in, one segmentation out."""

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

from brainseg_runtime import selftest
from brainseg_runtime.bundle import Bundle, Precision
from brainseg_runtime.engines.base import Engine
from brainseg_runtime.engines.choice import EngineName, choose, open_engine
from brainseg_runtime.labels import decide, drop_specks
from brainseg_runtime.preprocess import prepare, restore
from brainseg_runtime.spec import ModelSpec
from brainseg_runtime.tiles import predict
from brainseg_runtime.volume import Segmentation, Volume

__all__ = ["Segmenter", "load"]


class Segmenter(AbstractContextManager["Segmenter"]):
    """Segments scans with one model on one engine, and closes the engine when done."""

    def __init__(
        self,
        spec: ModelSpec,
        engine: Engine,
        *,
        batch: int = 1,
        model: Mapping[str, str] | None = None,
        why: str = "as given",
    ) -> None:
        """``batch`` tiles are computed at a time; results say ``model``, and ``why`` it is this engine."""
        self.spec = spec
        self.engine = engine
        self.batch = batch
        self.model = dict(model or {"name": spec.name})
        self.why = why

    def segment(self, volume: Volume) -> Segmentation:
        """Label every voxel of a scan, on the scan's own grid.

        Raises:
            ScanRefused: see ``preprocess.prepare``.
            EngineUnavailable: ``E_ENGINE_FAILED``.
        """
        clock = [time.perf_counter()]
        prepared = prepare(volume, self.spec)
        clock.append(time.perf_counter())
        logits = predict(prepared.data, self.engine, self.spec, self.batch)
        clock.append(time.perf_counter())
        labels = restore(logits, prepared.placement, partial(decide, spec=self.spec))
        labels = drop_specks(labels, self.spec, volume.geometry.voxel_volume)
        clock.append(time.perf_counter())
        seconds = [round(b - a, 4) for a, b in pairwise(clock)]
        return Segmentation(
            labels=labels,
            geometry=volume.geometry,
            names=self.spec.label_names,
            regions=self.spec.region_labels,
            scan=volume.scan,
            record={
                **self.record(),
                "engine_choice": self.why,
                "inputs": [vars(source) for source in volume.sources],
                "reference": self.spec.reference,
                **volume.record,
                "seconds": dict(zip(("prepare", "infer", "restore"), seconds, strict=True)),
            },
        )

    def record(self) -> dict[str, Any]:
        """What every result of this segmenter has in common: the model, the engine, the options."""
        return {
            "model": self.model,
            "engine": vars(self.engine.identity),
            "options": {"batch": self.batch},
        }

    def close(self) -> None:
        """Close the engine."""
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def load(
    model: Path | str,
    engine: EngineName = "auto",
    *,
    precision: Precision = "fp32",
    device: str = "cpu",
    threads: int | None = None,
    batch: int = 1,
) -> Segmenter:
    """Open a bundle, check every byte of it, open an engine, and prove the engine on the golden tile.

    Raises:
        BundleInvalid: the bundle is damaged, uncertified for the engine, or fails its self-test.
        EngineUnavailable: the engine or device is not to be had here.
    """
    bundle = Bundle.open(model)
    choice = choose(bundle, engine, precision, device)
    opened = open_engine(bundle, choice.engine, precision=precision, device=device, threads=threads)
    try:
        selftest.check(opened, bundle.golden())
    except BaseException:
        opened.close()
        raise
    identity = {"name": bundle.spec.name, "sha256": bundle.sha256}
    return Segmenter(bundle.spec, opened, batch=batch, model=identity, why=choice.why)
