"""What a network is to learn from the slices: one modality in, the tumour out, slice by slice."""

from brainseg_runtime.errors import UsageRefused
from brainseg_runtime.scans import ALIASES
from brainseg_runtime.spec import Label, Modality, ModelSpec, Region

from brainseg_trainer.config import TrainConfig
from brainseg_trainer.figshare.slices import KINDS
from brainseg_trainer.task import scheme_of

__all__ = ["PIXEL_MM", "SLICE_MM", "figshare_spec"]

PIXEL_MM = 0.49
"""Of slices of 512 x 512; from the paper (Cheng 2015), the files do not say it."""
SLICE_MM = 7.0
"""6 mm thick and 1 mm apart; from the paper."""


def figshare_spec(config: TrainConfig, divisor: tuple[int, int, int]) -> ModelSpec:
    """A tumour of any type in T1 after contrast, with the region ``TUMOUR``.

    Raises:
        UsageRefused: ``E_USAGE`` for other modalities, or labels where there is only one.
        BundleInvalid: ``E_SPEC`` where the tile is not a multiple of the network's divisor.
    """
    if config.task.modalities != ("t1c",) or config.task.activation != "sigmoid":
        raise UsageRefused(
            "E_USAGE",
            f"the slices are t1c with one label, the configuration asks for {config.task}.",
            "Take the recipe figshare, or base a file on it.",
        )
    return ModelSpec(
        name=config.name,
        modalities=(Modality("t1c", ALIASES["t1c"]),),
        reference="t1c",
        labels=(Label(1, "TUMOUR"),),
        regions=(Region("TUMOUR", (1,)),),
        tile=config.data.tile,
        divisor=divisor,
        spacing=config.data.spacing,
        normalisation=config.data.normalisation,
        scheme=scheme_of(config),
        types=tuple(KINDS.values()) if config.task.types else (),
        # The slices show the whole head.
        anatomy="head",
    )
