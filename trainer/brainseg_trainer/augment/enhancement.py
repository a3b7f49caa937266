"""A tumour that takes up no contrast agent, made of one that does.

Low-grade gliomas often do not enhance, and a network that has only seen those that do looks for the core by
its bright rim. T1 shows what T1c would have shown without the agent.
"""

import numpy as np
from brainseg_runtime.spec import ModelSpec
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["unenhanced"]

Image = NDArray[np.float32]
Labels = NDArray[np.uint8]

RIM = 0.7
"""Sigma of the border between what is exchanged and what is not, in voxels."""


def unenhanced(image: Image, labels: Labels, spec: ModelSpec) -> tuple[Image, Labels]:
    """A tile (i, j, k, C) whose core does not enhance, and its labels: what was ET is NCR.

    In the core T1c becomes T1, raised by what lies between the two in the healthy brain. A core without
    ET stays as it is.
    """
    values = {name: value for value, name in spec.label_names.items()}
    if not (labels == values["ET"]).any():
        return image, labels
    names = [modality.name for modality in spec.modalities]
    t1, t1c = image[..., names.index("t1")], image[..., names.index("t1c")]
    healthy = (labels == 0) & (t1 != 0)
    raised = np.median((t1c - t1)[healthy]) if healthy.any() else np.float32(0)
    core = np.isin(labels, (values["NCR"], values["ET"]))
    cover = ndimage.gaussian_filter(core.astype(np.float32), RIM)
    plain = image.copy()
    plain[..., names.index("t1c")] += cover * (t1 + raised - t1c)
    return plain, np.where(labels == values["ET"], values["NCR"], labels).astype(np.uint8)
