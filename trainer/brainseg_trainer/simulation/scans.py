"""Simulated heads as batches to train on, and as scans to hold out."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from brainseg_runtime.errors import ScanRefused, UsageRefused
from brainseg_runtime.geometry import Geometry
from brainseg_runtime.nifti import write_image, write_labels
from brainseg_runtime.spec import ModelSpec

from brainseg_trainer.config import TrainConfig
from brainseg_trainer.simulation.heads import Generator, cut, generator
from brainseg_trainer.simulation.ingredients import SPACING_MM, Ingredients
from brainseg_trainer.simulation.setting import OTHER, USUAL, Setting
from brainseg_trainer.task import BRATS_WORDS

__all__ = ["SimulatedBatches", "write_held_out"]

MODALITIES = tuple(BRATS_WORDS)
STEPS, CALM = 0, 1
"""Streams of random numbers that must not meet: batches of steps, and those that norms are measured on."""
SHAPE = (80, 96, 128)
"""Voxels (i, j, k) of a head: 150 x 180 x 155 mm."""
UNITS = 256
"""Steps that a deviation of intensity is written in."""

HELD_OUT: dict[str, Setting] = {
    "other": OTHER,
    # Real lesions of patients that training does not know, in simulated heads.
    "crops": USUAL._replace(tumour=0.0, grown=0.0, pasted=1.0, whole=0.0, absent=0.0),
    "healthy": OTHER._replace(tumour=0.0, grown=0.0),
}
"""Kind of a held-out scan -> how it is drawn."""


class SimulatedBatches:
    """Draws the batch of any step; the same step gives the same batch.

    Every tile of a batch comes from a head of its own. Where tiles are smaller than a head, a head serves as
    many steps in a row as a batch has tiles, another tile of it each time: to draw one takes longer than to
    learn from it.
    """

    def __init__(self, ingredients: Path, spec: ModelSpec, config: TrainConfig) -> None:
        """Raises ``ScanRefused`` ``E_SPACING`` and ``UsageRefused`` where the configuration asks for more."""
        if config.loss.kind == "boundary" or config.data.normalisation != "zscore" or config.task.types:
            raise UsageRefused(
                "E_USAGE",
                "simulated heads are z-scored, have no types, and no distances for the loss boundary.",
                "Change task.types, data.normalisation or loss.kind.",
            )
        if not np.allclose(config.data.spacing, SPACING_MM, atol=1e-3):
            raise ScanRefused(
                "E_SPACING",
                f"heads are simulated with voxels of {SPACING_MM} mm, not {config.data.spacing}.",
                "Set data.spacing to that.",
            )
        if any(n > most for n, most in zip(config.data.tile, SHAPE, strict=True)):
            raise UsageRefused(
                "E_USAGE",
                f"simulated heads have {SHAPE} voxels, a tile of {config.data.tile} does not fit.",
                "Make data.tile smaller.",
            )
        self._draw: Generator = generator(Ingredients.load(ingredients), SHAPE, USUAL)
        self._cut = partial(cut, tile=config.data.tile, tumour=config.data.tumour)
        self._seed, self._batch = config.seed, config.training.batch
        self._heads: dict[tuple[int, int], tuple[jax.Array, jax.Array]] = {}
        regions = [region.labels for region in spec.regions]
        self._members = [(value,) for value in spec.channels] if spec.channels else regions
        self._channels = jnp.array([MODALITIES.index(modality.name) for modality in spec.modalities])

    def __call__(self, step: int, *, altered: bool = True) -> tuple[jax.Array, jax.Array]:
        """Images (N, i, j, k, C) and masks (N, i, j, k, R); not ``altered``: of another stream."""
        stream = STEPS if altered else CALM
        _, key = self._keys(stream)
        keys = jax.random.split(jax.random.fold_in(key, step), self._batch)
        tiles = [self._cut(k, *self._head(stream, step + n)) for n, k in enumerate(keys)]
        images, labels = (jnp.stack(part) for part in zip(*tiles, strict=True))
        masks = [jnp.isin(labels, jnp.array(members)) for members in self._members]
        return images[..., self._channels], jnp.stack(masks, axis=-1).astype(jnp.float32)

    def _head(self, stream: int, number: int) -> tuple[jax.Array, jax.Array]:
        """The head of a number, kept for the steps that follow."""
        if (stream, number) not in self._heads:
            key, _ = self._keys(stream)
            images, labels = self._draw(jax.random.fold_in(key, number)[None])
            self._heads[stream, number] = images[0], labels[0]
            self._heads.pop((stream, number - self._batch), None)
        return self._heads[stream, number]

    def _keys(self, stream: int) -> jax.Array:
        """Two keys of a stream: that of its heads, and that of where tiles are cut."""
        return jax.random.split(jax.random.fold_in(jax.random.key(self._seed), stream))


def write_held_out(
    ingredients: Ingredients, out: Path, count: int, report: Callable[[str, int, int], None]
) -> list[str]:
    """Write ``count`` scans with truth of each kind in ``HELD_OUT`` under BraTS names; returns their names.

    Raises:
        OutputUnwritable: ``E_OUTPUT``.
    """
    names = []
    affine = np.diag([*SPACING_MM, 1.0])
    for k, (kind, setting) in enumerate(HELD_OUT.items()):
        draw = generator(ingredients, SHAPE, setting)
        for n in range(count):
            images, labels = draw(jax.random.split(jax.random.fold_in(jax.random.key(1000 + k), n), 1))
            name = f"{kind}-{n:03d}"
            geometry = Geometry(SHAPE, affine)
            for c, word in enumerate(BRATS_WORDS.values()):
                image = np.rint(np.asarray(images[0, ..., c]) * UNITS)
                if not image.any():  # not scanned
                    continue
                image = np.clip(image, -32768, 32767).astype(np.int16)
                write_image(out / name / f"{name}-{word}.nii.gz", image, geometry)
            write_labels(out / name / f"{name}-seg.nii.gz", np.asarray(labels[0]), geometry)
            names.append(name)
            report("simulating scans", len(names), count * len(HELD_OUT))
    return names
