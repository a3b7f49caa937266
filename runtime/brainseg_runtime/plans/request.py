"""Everything that a plan depends on, as one value: what was built for another is never taken for this."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from brainseg_runtime.gpu import Gpu
from brainseg_runtime.plans.flavour import Flavour
from brainseg_runtime.spec import ModelSpec

__all__ = ["Profile", "Request", "bound_to", "largest_batch", "profiles_of"]

RECIPE = 2
"""Raised whenever ``building.py`` comes to build otherwise: older plans are then not found any more."""

LARGEST_HEAD, TYPICAL_HEAD = (256.0, 256.0, 256.0), (144.0, 176.0, 144.0)
"""Millimetres along R, A, S: beyond any head in a scanner's field of view, and an adult's brain."""

LONGEST = 320
"""Voxels along an axis: 64 channels of 320^3 stay below the 2^31 values that a TensorRT tensor can have."""

LARGEST_BATCH = 4


@dataclass(frozen=True)
class Profile:
    """Shapes (N, C, i, j, k) that a plan is made for: it runs those between, and is fastest at one."""

    smallest: tuple[int, ...]
    typical: tuple[int, ...]
    largest: tuple[int, ...]

    def holds(self, shape: tuple[int, ...]) -> bool:
        """Whether a plan can run this shape."""
        bounds = zip(self.smallest, shape, self.largest, strict=True)
        return all(low <= n <= high for low, n, high in bounds)


@dataclass(frozen=True)
class Request:
    """A plan that is wanted: of which graph, by which TensorRT, for which GPU and driver, in which shapes."""

    graph_sha256: str
    precision: str
    flavour: str
    version: str
    """Of TensorRT, as far as the plan is bound to it."""
    gpu: str
    capability: tuple[int, int]
    driver: str
    input_name: str
    output_name: str
    profiles: tuple[Profile, ...]
    recipe: int = RECIPE

    @classmethod
    def of(
        cls, graph: bytes, spec: ModelSpec, precision: str, gpu: Gpu, flavour: Flavour, version: str
    ) -> "Request":
        """The plan of a graph on a GPU."""
        return cls(
            graph_sha256=hashlib.sha256(graph).hexdigest(),
            precision=precision,
            flavour=flavour.name,
            version=bound_to(flavour, version),
            gpu=gpu.name,
            capability=gpu.capability,
            driver=gpu.driver,
            input_name=spec.input_name,
            output_name=spec.output_name,
            profiles=profiles_of(spec),
        )

    @property
    def key(self) -> str:
        """64 hexadecimal digits that differ as soon as anything does."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """The request as JSON tells it."""
        return asdict(self)


def bound_to(flavour: Flavour, version: str) -> str:
    """What of a version a plan depends on: all of it, but for the lean library only the major number."""
    return version if flavour.builds else version.split(".")[0]


def profiles_of(spec: ModelSpec) -> tuple[Profile, ...]:
    """The shapes of a model's inputs: whole heads where it takes them, and tiles in batches."""
    channels, divisor = len(spec.modalities), spec.divisor
    tile = tuple(max(t, d) for t, d in zip(spec.tile, divisor, strict=True))
    tiles = Profile(
        smallest=(1, channels, *divisor),
        typical=(1, channels, *tile),
        largest=(
            LARGEST_BATCH,
            channels,
            *(max(t, _whole(128, d)) for t, d in zip(tile, divisor, strict=True)),
        ),
    )
    if spec.scheme == "tiles":
        return (tiles,)
    head = Profile(
        smallest=(1, channels, *divisor),
        typical=(1, channels, *_voxels(TYPICAL_HEAD, spec)),
        largest=(1, channels, *_voxels(LARGEST_HEAD, spec)),
    )
    return head, tiles


def largest_batch(profiles: tuple[Profile, ...], shape: tuple[int, ...]) -> int:
    """How many tiles of a shape (N, C, i, j, k) a plan takes at once, N at most; 0 where it takes none."""
    return next((n for n in range(shape[0], 0, -1) if any(p.holds((n, *shape[1:])) for p in profiles)), 0)


def _voxels(mm: tuple[float, ...], spec: ModelSpec) -> tuple[int, ...]:
    sides = (min(LONGEST, round(n / s)) for n, s in zip(mm, spec.spacing, strict=True))
    return tuple(_whole(n, d) for n, d in zip(sides, spec.divisor, strict=True))


def _whole(n: int, divisor: int) -> int:
    """The first multiple of a divisor from ``n`` on."""
    return -(-n // divisor) * divisor
