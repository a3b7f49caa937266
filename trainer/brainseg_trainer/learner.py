"""A network that is being trained, and all of its state."""

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import keras
import numpy as np
from brainseg_runtime.errors import EngineUnavailable, UsageRefused
from brainseg_runtime.files import write_atomically
from numpy.typing import NDArray

from brainseg_trainer.config import Precision, Training
from brainseg_trainer.losses import LossFunction
from brainseg_trainer.networks import deployed
from brainseg_trainer.workers import alone

__all__ = ["Learner", "precision_of"]

Array = NDArray[np.float32]


class Learner:
    """Takes steps; its state, saved and restored, makes the next step the same to the last bit."""

    def __init__(
        self,
        network: keras.Model,
        training: Training,
        loss: LossFunction,
        coarse_loss: LossFunction | None = None,
    ) -> None:
        """``network`` has the logits as its first output, auxiliary ones on coarser grids after it.

        ``coarse_loss`` is for those, which tell no types; by default the same.
        """
        self.network = deployed(network)
        self._whole = network
        self._optimiser = _optimiser(training)
        # Decay would pull norms towards 0 and biases away from where they belong.
        self._optimiser.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        self._optimiser.build(network.trainable_variables)
        scaled = (
            keras.optimizers.LossScaleOptimizer(self._optimiser) if training.precision == "fp16" else None
        )
        heads = len(network.outputs)
        shares = np.exp2(-np.arange(heads, dtype=float))
        # A twin with the same weights: compiling the network itself would be saved with it.
        self._twin = keras.Model(network.input, network.outputs)
        self._twin.compile(
            optimizer=scaled or self._optimiser,
            loss=[loss] + [coarse_loss or loss] * (heads - 1),
            # Each coarser head counts half as much (Isensee et al. 2021).
            loss_weights=(shares / shares.sum()).tolist(),
            # XLA is several times slower than TensorFlow's own kernels on a CPU, and all that JAX has.
            jit_compile=keras.backend.backend() == "jax",
        )
        if scaled:
            scaled.build(network.trainable_variables)
        self._variables = [*network.variables, *(scaled or self._optimiser).variables]

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return float(self._optimiser.learning_rate)

    @property
    def bytes(self) -> int:
        """Of the state."""
        return sum(int(np.prod(v.shape)) * np.dtype(v.dtype).itemsize for v in self._variables)

    def step(self, images: Array, truth: Array) -> float:
        """Learn from one batch, (N, i, j, k, C) and (N, i, j, k, R); the loss before the step.

        Raises:
            EngineUnavailable: ``E_ENGINE_FAILED`` where the loss is no number any more.
        """
        self._twin.reset_metrics()
        whole, *coarse = self._twin.compute_output_shape(images.shape)
        types = [whole[-1] - head[-1] for head in coarse]
        outlines = [truth[..., : truth.shape[-1] - n] for n in types]
        targets = [_pooled(outline, head) for outline, head in zip(outlines, coarse, strict=True)]
        result = self._twin.train_on_batch(images, [truth, *targets])
        loss = float(np.ravel(result)[0])
        if not np.isfinite(loss):
            raise EngineUnavailable(
                "E_ENGINE_FAILED", f"the loss became {loss}.", "Lower training.learning_rate."
            )
        return loss

    @contextmanager
    def as_scored(self, batches: Iterable[Array]) -> Iterator[keras.Model]:
        """A copy of the network to score and to keep, which belongs to this process alone.

        Its weights are their running mean where one is kept. Batch norm's statistics are measured anew
        over ``batches``: the averages that training leaves lag behind the weights (Wu and Johnson 2021,
        "precise BN").
        """
        trained = self._whole.trainable_variables
        before = [keras.ops.convert_to_numpy(variable) for variable in trained]
        # Does nothing where no mean is kept.
        self._optimiser.finalize_variable_values(trained)
        weights = self.network.get_weights()
        for variable, value in zip(trained, before, strict=True):
            variable.assign(value)
        with alone():
            copy = keras.models.clone_model(self.network)
            copy.set_weights(weights)
            _recalibrate(copy, batches)
            yield copy

    def save(self, path: Path, state: Mapping[str, Any]) -> None:
        """Write weights, statistics, the optimiser and whatever JSON ``state`` holds, as one file."""
        arrays: dict[str, Any] = {
            f"{n:05d}": keras.ops.convert_to_numpy(variable) for n, variable in enumerate(self._variables)
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
        try:
            with path.open("rb") as file, np.load(file) as arrays:
                state: dict[str, Any] = json.loads(arrays["state"].tobytes())
                values = [arrays[f"{n:05d}"] for n in range(len(arrays.files) - 1)]
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            raise UsageRefused("E_RUN", f"{path} is damaged: {error}.", "Start another run.") from error
        if [value.shape for value in values] != [tuple(variable.shape) for variable in self._variables]:
            raise UsageRefused("E_RUN", f"{path} belongs to another network.", "Start another run.")
        for variable, value in zip(self._variables, values, strict=True):
            variable.assign(value)
        return state


@contextmanager
def precision_of(precision: Precision) -> Iterator[None]:
    """Networks that are built inside compute in a precision, their weights in float32."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(POLICIES[precision])
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


POLICIES = {"fp32": "float32", "bf16": "mixed_bfloat16", "fp16": "mixed_float16"}
"""Precision -> Keras' name for it."""


def _optimiser(training: Training) -> keras.optimizers.Optimizer:
    options: dict[str, Any] = {
        "weight_decay": training.weight_decay,
        "global_clipnorm": training.clip or None,
        "use_ema": training.ema > 0,
        "ema_momentum": training.ema or 0.99,
    }
    if training.optimiser == "sgd":
        return keras.optimizers.SGD(_Schedule(training), momentum=0.99, nesterov=True, **options)
    return keras.optimizers.AdamW(_Schedule(training), **options)


class _Schedule(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
    """A linear rise, then the way down over the steps that are left."""

    def __init__(self, training: Training) -> None:
        self._training = training

    def __call__(self, step: keras.KerasTensor) -> keras.KerasTensor:
        """The learning rate of a step."""
        training = self._training
        after = keras.ops.cast(step, "float32") - training.warmup
        share = keras.ops.clip(after / (training.steps - training.warmup), 0.0, 1.0)
        match training.schedule:
            case "cosine":  # Loshchilov and Hutter 2017
                factor = (1.0 + keras.ops.cos(np.pi * share)) / 2.0
            case "poly":  # Isensee et al. 2021
                factor = (1.0 - share) ** 0.9
            case "exponential":  # Isensee et al. 2017: an epoch has 100 batches
                factor = 0.985 ** (keras.ops.maximum(after, 0.0) / 100.0)
            case "constant":
                factor = keras.ops.ones_like(share)
        rising = 1.0 + keras.ops.minimum(after, 0.0) / max(training.warmup, 1)
        return training.learning_rate * rising * factor


def _recalibrate(network: keras.Model, batches: Iterable[Array]) -> None:
    """Measure batch norm's statistics anew: their mean over batches, with the weights as they are."""
    norms = [n for n in network.layers if isinstance(n, keras.layers.BatchNormalization)]
    dropouts = [n for n in network.layers if isinstance(n, keras.layers.SpatialDropout3D)]
    if not norms:
        return
    momenta, rates = [norm.momentum for norm in norms], [dropout.rate for dropout in dropouts]
    # The network is used without dropout, which would add to the variance.
    for dropout in dropouts:
        dropout.rate = 0.0
    for count, batch in enumerate(batches):
        for norm in norms:
            norm.momentum = count / (count + 1)
        network(batch, training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for dropout, rate in zip(dropouts, rates, strict=True):
        dropout.rate = rate


def _pooled(truth: Array, grid: Sequence[int | None]) -> Array:
    """Truth (N, i, j, k, R) on a coarser grid: the share of each coarse voxel that a region takes."""
    shape = [truth.shape[0]]
    for fine, coarse in zip(truth.shape[1:4], grid[1:4], strict=True):
        assert coarse is not None
        shape += [coarse, fine // coarse]
    pooled: Array = truth.reshape(*shape, truth.shape[-1]).mean(axis=(2, 4, 6))
    return pooled
