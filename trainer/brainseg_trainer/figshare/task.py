"""What a network is to learn from the slices: one modality in, the tumour out, slice by slice."""

from brainseg_runtime.scans import ALIASES
from brainseg_runtime.spec import Label, Modality, ModelSpec, Region

__all__ = ["SPACING_MM", "figshare_spec"]

PIXEL_MM = 0.49
"""Of slices of 512 x 512; from the paper (Cheng 2015), the files do not say it."""
SLICE_MM = 7.0
"""6 mm thick and 1 mm apart; from the paper."""
SPACING_MM = (2 * PIXEL_MM, 2 * PIXEL_MM, SLICE_MM)
"""Of the network's grid: half the pixels of most slices, all of those of 256 x 256."""


def figshare_spec(name: str, tile: tuple[int, int, int], divisor: tuple[int, int, int]) -> ModelSpec:
    """A tumour of any type in T1 after contrast, with the region ``TUMOUR``.

    Raises:
        BundleInvalid: ``E_SPEC`` where the tile is not a multiple of the network's divisor.
    """
    return ModelSpec(
        name=name,
        modalities=(Modality("t1c", ALIASES["t1c"]),),
        reference="t1c",
        labels=(Label(1, "TUMOUR"),),
        regions=(Region("TUMOUR", (1,)),),
        tile=tile,
        divisor=divisor,
        spacing=SPACING_MM,
    )
