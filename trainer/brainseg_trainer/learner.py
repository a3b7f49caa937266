"""A network that is being trained, and all of its state."""

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import keras
import numpy as np
from brainseg_runtime.errors import EngineUnavailable, UsageRefused
from brainseg_runtime.files import write_atomically
from numpy.typing import NDArray

from brainseg_trainer.config import Training
from brainseg_trainer.losses import dice_bce

__all__ = ["Learner"]

Array = NDArray[np.float32]


class Learner:
    """Takes steps; its state, saved and restored, makes the next step the same to the last bit."""

    def __init__(self, network: keras.Model, training: Training) -> None:
        self.network = network
        self._optimiser = keras.optimizers.AdamW(_schedule(training), weight_decay=training.weight_decay)
        # Decay would pull norms towards 0 and biases away from where they belong.
        self._optimiser.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        self._optimiser.build(network.trainable_variables)
        # A twin with the same weights: compiling the network itself would be saved with it.
        self._twin = keras.Model(network.input, network.output)
        # XLA is several times slower than TensorFlow's own kernels on a CPU.
        self._twin.compile(optimizer=self._optimiser, loss=dice_bce, jit_compile=False)

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return float(self._optimiser.learning_rate)

    def step(self, images: Array, masks: Array) -> float:
        """Learn from one batch, (N, i, j, k, C) and (N, i, j, k, R); the loss before the step.

        Raises:
            EngineUnavailable: ``E_ENGINE_FAILED`` where the loss is no number any more.
        """
        self._twin.reset_metrics()
        loss = float(self._twin.train_on_batch(images, masks))
        if not np.isfinite(loss):
            raise EngineUnavailable(
                "E_ENGINE_FAILED", f"the loss became {loss}.", "Lower training.learning_rate."
            )
        return loss

    def recalibrate(self, batches: Iterable[Array]) -> None:
        """Measure batch norm's statistics anew: their mean over batches, with the weights as they are.

        The moving averages that training leaves lag behind the weights (Wu and Johnson 2021,
        "precise BN"). No weight changes, so training goes on as if nothing had been.
        """
        norms = [n for n in self.network.layers if isinstance(n, keras.layers.BatchNormalization)]
        momenta = [norm.momentum for norm in norms]
        for count, batch in enumerate(batches):
            for norm in norms:
                norm.momentum = count / (count + 1)
            self.network(batch, training=True)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

    def save(self, path: Path, state: Mapping[str, Any]) -> None:
        """Write weights, statistics, the optimiser and whatever JSON ``state`` holds, as one file."""
        arrays: dict[str, Any] = {
            f"{n:05d}": keras.ops.convert_to_numpy(variable) for n, variable in enumerate(self._variables())
        }
        arrays["state"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
        content = io.BytesIO()
        np.savez(content, **arrays)
        write_atomically(path, content.getvalue())

    def restore(self, path: Path) -> dict[str, Any]:
        """Take the state that ``save`` wrote; returns what it was given.

        Raises:
            UsageRefused: ``E_RUN`` for a damaged file, or one of another network.
        """
        variables = self._variables()
        try:
            with path.open("rb") as file, np.load(file) as arrays:
                state: dict[str, Any] = json.loads(arrays["state"].tobytes())
                values = [arrays[f"{n:05d}"] for n in range(len(arrays.files) - 1)]
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            raise UsageRefused("E_RUN", f"{path} is damaged: {error}.", "Start another run.") from error
        if [value.shape for value in values] != [tuple(variable.shape) for variable in variables]:
            raise UsageRefused("E_RUN", f"{path} belongs to another network.", "Start another run.")
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        return state

    def _variables(self) -> list[Any]:
        return [*self.network.variables, *self._optimiser.variables]


def _schedule(training: Training) -> keras.optimizers.schedules.LearningRateSchedule:
    """A linear rise, then a cosine to 0 (Loshchilov and Hutter 2017)."""
    if training.warmup == 0:
        return keras.optimizers.schedules.CosineDecay(training.learning_rate, training.steps)
    return keras.optimizers.schedules.CosineDecay(
        0.0,
        training.steps - training.warmup,
        warmup_target=training.learning_rate,
        warmup_steps=training.warmup,
    )
