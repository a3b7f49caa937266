"""Everything a model was trained to expect and what its outputs mean, as one value that travels with it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, get_args

from brainseg_runtime.errors import BundleInvalid

__all__ = ["FORMAT", "Activation", "Label", "Modality", "ModelSpec", "Normalisation", "Region"]

FORMAT = 1
"""The version of the spec's form; a reader refuses a newer one."""

Activation = Literal["sigmoid", "softmax"]
Normalisation = Literal["zscore", "none"]
Anatomy = Literal["brain", "head"]
Scheme = Literal["tiles", "whole"]


@dataclass(frozen=True)
class Modality:
    """One input channel and the file-name words that announce it."""

    name: str
    aliases: tuple[str, ...] = ()
    optional: bool = False
    """Whether the model was trained to do without it."""


@dataclass(frozen=True)
class Label:
    """A value of the label image and what it stands for."""

    value: int
    name: str


@dataclass(frozen=True)
class Region:
    """A union of labels that is reported as one, such as the tumour core."""

    name: str
    labels: tuple[int, ...]
    threshold: float = 0.5
    """Probability from which a voxel belongs to the region; used by sigmoid models only."""
    min_volume_mm3: float = 0.0
    """Connected pieces of the region smaller than this are dropped."""


@dataclass(frozen=True)
class ModelSpec:
    """What goes into a model, what comes out of it, and how a scan becomes the one and the other.

    A sigmoid model has one output channel per region, in the order of ``regions``; regions are nested
    or disjoint, an outer one before those inside it. A softmax model has one output channel per entry
    of ``channels``, which names the label value of each. A model that tells the type of a tumour has one
    more channel per entry of ``types``, whatever its activation.

    Raises:
        BundleInvalid: ``E_SPEC`` where fields contradict each other.
    """

    name: str
    modalities: tuple[Modality, ...]
    """Input channels, in order."""
    reference: str
    """The modality on whose grid a segmentation is written."""
    labels: tuple[Label, ...]
    regions: tuple[Region, ...]
    tile: tuple[int, int, int]
    """(i, j, k) voxels that the network sees at once."""
    divisor: tuple[int, int, int]
    """(i, j, k) the network's input must be a multiple of."""
    activation: Activation = "sigmoid"
    channels: tuple[int, ...] = ()
    """Softmax models: the label value of each output channel; empty for sigmoid models."""
    types: tuple[str, ...] = ()
    """Types of tumour that the last output channels tell apart; empty for most models."""
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Voxel size of the network's grid, in mm, along R, A, S."""
    orientation: Literal["RAS"] = "RAS"
    overlap: float = 0.5
    """Fraction of a tile that neighbouring tiles share along each axis."""
    scheme: Scheme = "tiles"
    """``tiles``: overlapping ones, blended. ``whole``: the head in one pass, for networks whose answer at a
    voxel does not depend on how much is seen around it, so none with statistics of their own input."""
    halo: int = 0
    """``whole`` only: voxels around a part of the head that must be seen with it, so that its answer is that
    of the whole within the bound of FP32; found by measurement at export. 0 where not known."""
    working_bytes: int = 0
    """Bytes of activations that one pass holds at its peak, per voxel of its input; 0 where not known."""
    normalisation: Normalisation = "zscore"
    """``zscore``: per modality over the brain, background 0. ``none``: intensities as they are."""
    anatomy: Anatomy = "brain"
    """What the model was trained on. ``brain``: skull-stripped images. ``head``: images as they come."""
    input_name: str = "image"
    output_name: str = "logits"

    def __post_init__(self) -> None:
        for problem in self._problems():
            raise BundleInvalid(
                "E_SPEC", f"the specification of {self.name!r}: {problem}.", "Correct spec.json."
            )

    def _problems(self) -> list[str]:
        names = [modality.name for modality in self.modalities]
        values = {label.value for label in self.labels}
        problems = []
        if not names or len(set(names)) != len(names):
            problems.append(f"modalities are named once each, received {names}")
        if any(modality.optional and modality.name == self.reference for modality in self.modalities):
            problems.append(f"the reference {self.reference!r} cannot be optional")
        if self.reference not in names:
            problems.append(f"the reference {self.reference!r} is none of {names}")
        if not values or len(values) != len(self.labels) or not all(0 < v < 256 for v in values):
            problems.append(f"label values are distinct in 1..255, received {sorted(values)}")
        if not self.regions or len({region.name for region in self.regions}) != len(self.regions):
            problems.append("regions are named once each")
        for region in self.regions:
            if not set(region.labels) <= values or not region.labels:
                problems.append(f"region {region.name} is made of unknown labels {region.labels}")
            if not 0.0 < region.threshold < 1.0:
                problems.append(f"the threshold of {region.name} is not between 0 and 1")
            if not 0.0 <= region.min_volume_mm3 < float("inf"):
                problems.append(
                    f"min_volume_mm3 of {region.name} is not negative, received {region.min_volume_mm3}"
                )
        if self.activation not in get_args(Activation):
            problems.append(f"unknown activation {self.activation!r}")
        if self.normalisation not in get_args(Normalisation):
            problems.append(f"unknown normalisation {self.normalisation!r}")
        if self.scheme not in get_args(Scheme):
            problems.append(f"unknown scheme {self.scheme!r}")
        if self.halo < 0 or self.working_bytes < 0 or (self.halo and self.scheme != "whole"):
            problems.append("halo and working_bytes are not negative, and a halo belongs to the scheme whole")
        if self.anatomy not in get_args(Anatomy):
            problems.append(f"unknown anatomy {self.anatomy!r}")
        if self.orientation != "RAS":
            problems.append(f"orientation is RAS, received {self.orientation!r}")
        if self.activation == "sigmoid":
            problems.extend(self._nesting_problems())
            if self.channels:
                problems.append("channels belong to softmax models")
        elif set(self.channels) != values | {0} or len(self.channels) != len(values) + 1:
            problems.append(f"softmax channels name 0 and every label once, received {self.channels}")
        if not all(self.types) or len(set(self.types)) != len(self.types) or len(self.types) == 1:
            problems.append(f"types are two or more, named once each, received {self.types}")
        if len(self.tile) != 3 or len(self.divisor) != 3 or min(self.divisor, default=0) < 1:
            problems.append("tile and divisor are three positive numbers")
        elif any(t < 1 or t % d for t, d in zip(self.tile, self.divisor, strict=True)):
            problems.append(f"tile {self.tile} is not a multiple of divisor {self.divisor}")
        if len(self.spacing) != 3 or not all(0.05 <= mm <= 20.0 for mm in self.spacing):
            problems.append(f"spacing is three sizes in 0.05..20 mm, received {self.spacing}")
        if not 0.0 <= self.overlap <= 0.75:
            problems.append(f"overlap is in 0..0.75, received {self.overlap}")
        return problems

    def _nesting_problems(self) -> list[str]:
        problems = []
        for n, outer in enumerate(self.regions):
            for inner in self.regions[n + 1 :]:
                shared = set(outer.labels) & set(inner.labels)
                if shared and not set(inner.labels) < set(outer.labels):
                    problems.append(f"region {inner.name} is neither inside {outer.name} nor apart from it")
            if len(set(outer.labels).difference(*(r.labels for r in self.regions[n + 1 :]))) != 1:
                problems.append(f"region {outer.name} must hold exactly one label that no inner region holds")
        return problems

    @property
    def output_channels(self) -> int:
        """Number of channels R of the network's output."""
        return self.label_channels + len(self.types)

    @property
    def label_channels(self) -> int:
        """Number of the first of them, which decide the labels."""
        return len(self.regions) if self.activation == "sigmoid" else len(self.channels)

    @property
    def thin(self) -> bool:
        """Whether the network works slice by slice, so that a few slices or a single one will do."""
        return min(self.divisor) == 1 < max(self.divisor)

    @property
    def label_names(self) -> dict[int, str]:
        """Label value -> name."""
        return {label.value: label.name for label in self.labels}

    @property
    def region_labels(self) -> dict[str, tuple[int, ...]]:
        """Region name -> label values."""
        return {region.name: region.labels for region in self.regions}

    def own_label(self, region: Region) -> int:
        """The one label of a region that no region inside it holds."""
        inner = self.regions[self.regions.index(region) + 1 :]
        (value,) = set(region.labels).difference(*(r.labels for r in inner))
        return value

    def to_json(self) -> str:
        """The spec as JSON text, keys sorted, so that equal specs are equal bytes."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read a spec.

        Raises:
            BundleInvalid: ``E_BUNDLE_FORMAT`` for a newer format or unknown or missing fields,
                ``E_SPEC`` for fields that contradict each other.
        """
        try:
            raw = json.loads(text)
            version = raw.pop("format")
            if version != FORMAT:
                raise BundleInvalid(
                    "E_BUNDLE_FORMAT",
                    f"the specification has format {version}, this runtime reads {FORMAT}.",
                    "Update brainseg-runtime, or export the model again.",
                )
            return cls(**_typed(raw))
        except BundleInvalid:
            raise
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise BundleInvalid(
                "E_BUNDLE_FORMAT", f"not a model specification: {error}.", "Export the model again."
            ) from error


def _typed(raw: Mapping[str, Any]) -> dict[str, Any]:
    """JSON's lists and objects as the tuples and values of the spec."""
    fields: dict[str, Any] = dict(raw)
    fields["modalities"] = tuple(
        Modality(str(m["name"]), tuple(str(a) for a in m["aliases"]), bool(m.get("optional", False)))
        for m in raw["modalities"]
    )
    fields["labels"] = tuple(Label(int(entry["value"]), str(entry["name"])) for entry in raw["labels"])
    fields["regions"] = tuple(
        Region(
            str(r["name"]),
            tuple(int(v) for v in r["labels"]),
            float(r["threshold"]),
            float(r["min_volume_mm3"]),
        )
        for r in raw["regions"]
    )
    for name, kind in (
        ("tile", int),
        ("divisor", int),
        ("channels", int),
        ("types", str),
        ("spacing", float),
    ):
        if name in raw:
            fields[name] = tuple(kind(value) for value in raw[name])
    return fields
