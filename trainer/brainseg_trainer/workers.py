"""Several processes, or several devices of one, that train one network together.

JAX does the work: under Keras' ``DataParallel`` a step is one program over all devices, whose sums, batch
norm's included, run over the whole batch. So the number of workers changes nothing but the time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import keras
from brainseg_runtime.errors import EngineUnavailable, UsageRefused

__all__ = ["Workers", "alone", "join"]


@dataclass(frozen=True)
class Workers:
    """Who trains, and which of them this process is; by default it is the only one."""

    count: int = 1
    number: int = 0
    """0 to count - 1; the first one writes the files."""
    address: str = ""
    """Host and port where the first one listens, the same for all."""

    @property
    def is_first(self) -> bool:
        """Whether this one writes."""
        return self.number == 0

    def share(self, batch: int) -> range:
        """Which tiles of a step this one draws."""
        each = batch // self.count
        return range(each * self.number, each * (self.number + 1))


def join(workers: Workers, batch: int) -> None:
    """Meet the other workers, and spread steps of ``batch`` tiles over all devices.

    This comes before any network is built.

    Raises:
        UsageRefused: ``E_USAGE`` for numbers that do not fit, or workers without JAX.
        EngineUnavailable: ``E_ENGINE_DEVICE`` where the others are not met.
    """
    if keras.backend.backend() != "jax":
        if workers.count > 1:
            raise _refused("several workers train with JAX only", 'Set training.backend = "jax".')
        return
    if not 0 <= workers.number < workers.count or (workers.count > 1 and not workers.address):
        raise _refused(
            f"worker {workers.number} of {workers.count} at {workers.address!r} is no worker", "See --help."
        )
    if workers.count > 1:
        try:
            keras.distribution.initialize(workers.address, workers.count, workers.number)
        except RuntimeError as error:
            raise EngineUnavailable(
                "E_ENGINE_DEVICE",
                f"the workers at {workers.address} were not met: {error}.",
                "Start all of them, with one address and each its own number.",
            ) from error
    devices = len(keras.distribution.list_devices())
    if batch % max(devices, workers.count):
        raise _refused(
            f"{batch} tiles cannot be shared by {devices} devices", "Make training.batch a multiple."
        )
    if devices > 1:
        keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))


@contextmanager
def alone() -> Iterator[None]:
    """Networks that are built and run inside belong to this process only."""
    together = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(together)


def _refused(what: str, remedy: str) -> UsageRefused:
    return UsageRefused("E_USAGE", f"{what}.", remedy)
