"""What simulated heads are made of: anatomy, shapes of real tumours, what tissues look like, real lesions.

All of it lies on axes R, A, S about the middle of the brain, and travels as one file.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self
from zipfile import BadZipFile

import nibabel
import numpy as np
from brainseg_runtime.errors import ScanRefused
from brainseg_runtime.files import write_atomically
from numpy.typing import NDArray

from brainseg_trainer.simulation.appearance import Appearances, measured

__all__ = ["CROP_STEP", "HALF_MM", "SPACING_MM", "TISSUES", "Ingredients", "gather"]

SPACING_MM = (1.875, 1.875, 155 / 128)
"""Of tumours and crops: BraTS' 240x240x155 mm stretched to 128^3."""
BRAIN_CENTRE_MM = (118.5, 130.5, 73.0)
"""Middle of the brain in BraTS' space, from its first voxel along L, P, S; the same within 2 mm in all
scans, since they were registered to one atlas (SRI24)."""
ORIGIN_MM = (240 - BRAIN_CENTRE_MM[0], 240 - BRAIN_CENTRE_MM[1], BRAIN_CENTRE_MM[2])
"""The same on R, A, S, as tumours and crops are kept."""
HALF_MM = (84, 104, 88)
"""How far a head reaches about the middle of its brain."""
CROP_STEP = 0.06
"""Of the z-scores of crops, which are kept in bytes."""

TISSUES = (
    *("outside", "fluid", "ventricle", "cortex", "white", "cerebellar_grey", "cerebellar_white"),
    *("striatum", "thalamus", "pallidum", "hippocampus", "stem", "surroundings"),
    *("soft", "skin", "bone", "marrow", "eye", "vein"),
)
"""What a voxel of anatomy is, by its value; from ``surroundings`` on what is not the brain's."""
_FREESURFER: dict[str, tuple[int, ...]] = {
    "fluid": (24,),
    "ventricle": (4, 5, 14, 15, 43, 44, 72),
    "cortex": (3, 42, 136, 137, 163, 164),
    "white": (2, 41, 25, 57, 85),
    "cerebellar_grey": (8, 47),
    "cerebellar_white": (7, 46),
    "striatum": (11, 12, 26, 30, 50, 51, 58, 62),
    "thalamus": (10, 49),
    "pallidum": (13, 52),
    "hippocampus": (17, 18, 53, 54),
    "stem": (16, 28, 60),
    "soft": (507, 508, 509),
    "skin": (511,),
    "bone": (515,),
    "marrow": (516,),
    "eye": (506,),
    "vein": (502, 514),
}
"""Tissue -> FreeSurfer's labels; the others from 500 on are surroundings."""


VOLUMES, VALIDATION = "label_volumes_128.npz", "validation.npz"
HELD_TUMOURS = 39
"""The last of the label volumes, for heads that are held out."""

_Crops = tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.bool_], NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Ingredients:
    """Everything that heads are drawn from."""

    heads: NDArray[np.uint8]
    """(H, I, J, K) ``TISSUES`` at 1 mm."""
    tumours: NDArray[np.uint8]
    """(T, i, j, k) labels 1 NCR, 2 ED, 3 ET as experts drew them, at ``SPACING_MM``, in their places."""
    centroids: NDArray[np.float32]
    """(T, 3) middle of each tumour, mm."""
    radii: NDArray[np.float32]
    """(T,) of a ball of its volume, mm."""
    crops: NDArray[np.int8]
    """(M, 32, 32, 32, 4) z-scores of T1, T1c, T2, FLAIR in steps of ``CROP_STEP``, 0 where there is none."""
    crop_labels: NDArray[np.uint8]
    """(M, 32, 32, 32)."""
    crop_inside: NDArray[np.bool_]
    """(M, 32, 32, 32): where a crop has data of the brain."""
    crop_places: NDArray[np.float32]
    """(M, 3) middle of each crop, mm."""
    appearances: Appearances
    """Of tissues and parts of tumours, one per crop that shows enough."""

    def save(self, path: Path) -> None:
        """Write one file.

        Raises:
            OutputUnwritable: ``E_OUTPUT``.
        """
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "appearances"}
        arrays |= {f"appearances.{f.name}": getattr(self.appearances, f.name) for f in fields(Appearances)}
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)
        write_atomically(path, content.getvalue())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what ``save`` wrote.

        Raises:
            ScanRefused: ``E_INPUT_MISSING`` for anything else.
        """
        try:
            with np.load(path) as file:
                found = {name: file[name] for name in file.files}
            return cls(
                **{f.name: found[f.name] for f in fields(cls) if f.name != "appearances"},
                appearances=Appearances(*(found[f"appearances.{f.name}"] for f in fields(Appearances))),
            )
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            raise ScanRefused(
                "E_INPUT_MISSING", f"{path} does not hold ingredients: {error}.", "Gather them again."
            ) from error


def gather(heads: Path, template: Path, lesions: Path) -> tuple[Ingredients, Ingredients]:
    """Read what heads are made of: to train on, and to hold out.

    ``heads`` holds SynthSeg's label maps, ``template`` the tissue maps of MNI152, which are held out;
    ``lesions`` crops and label volumes of BraTS 2020's patients, a file of crops for those held out.

    Raises:
        ScanRefused: ``E_INPUT_MISSING`` where one of them is not there.
    """
    maps, files = sorted(heads.glob("*seg*.nii.gz")), sorted(lesions.glob("train_*.npz"))
    for folder, pattern, found in (
        (heads, "*seg*.nii.gz", maps),
        (template, "*_gm_tal_*.nii.gz", list(template.glob("*_gm_tal_*.nii.gz"))),
        *((lesions, name, list(lesions.glob(name))) for name in ("train_*.npz", VOLUMES, VALIDATION)),
    ):
        if not found:
            raise ScanRefused(
                "E_INPUT_MISSING",
                f"{folder} holds no {pattern}.",
                "Name the folders of SynthSeg's label maps, of MNI152's and of the lesions of BraTS 2020.",
            )
    with np.load(lesions / VOLUMES) as file:
        tumours = _ras(np.where(file["seg"] == 4, 3, file["seg"]).astype(np.uint8))
    anatomy = np.stack([_tissues(path) for path in maps])
    index = lesions / "index.json"
    return (
        _ingredients(anatomy, tumours[:-HELD_TUMOURS], _crops(files, index)),
        _ingredients(
            np.concatenate([_template(template), anatomy]),
            tumours[-HELD_TUMOURS:],
            _crops([lesions / VALIDATION], index),
        ),
    )


def _ingredients(heads: NDArray[np.uint8], tumours: NDArray[np.uint8], crops: _Crops) -> Ingredients:
    centroids = np.array([_middle(tumour > 0) for tumour in tumours], np.float32)
    voxel_mm3 = float(np.prod(SPACING_MM))
    radii = np.array(
        [np.cbrt(0.75 / np.pi * voxel_mm3 * (tumour > 0).sum()) for tumour in tumours], np.float32
    )
    images, labels, inside, places = crops
    return Ingredients(
        heads=heads,
        tumours=tumours,
        centroids=centroids,
        radii=radii,
        crops=np.clip(np.rint(images / CROP_STEP), -127, 127).astype(np.int8),
        crop_labels=labels,
        crop_inside=inside,
        crop_places=places,
        appearances=measured(images, labels, inside),
    )


def _template(folder: Path) -> NDArray[np.uint8]:
    """The head (1, I, J, K) of the MNI152 tissue maps: never trained on, to test with."""
    grey, white, t1 = (
        nibabel.load(next(folder.glob(f"*_{kind}_tal_*.nii.gz"))) for kind in ("gm", "wm", "t1")
    )
    shares = [np.asanyarray(image.dataobj).astype(np.float32) / 255 for image in (grey, white)]
    brain = np.asanyarray(t1.dataobj) > 0
    tissue = np.full(brain.shape, TISSUES.index("fluid"), np.uint8)
    tissue[shares[0] > 0.5] = TISSUES.index("cortex")
    tissue[shares[1] > 0.5] = TISSUES.index("white")
    # Fluid deep inside is the ventricles'.
    i, j, k = (np.arange(n, dtype=np.float32) for n in brain.shape)
    middle = np.argwhere(brain).mean(axis=0)
    deep = (
        ((i - middle[0]) / 40)[:, None, None] ** 2
        + ((j - middle[1]) / 60)[None, :, None] ** 2
        + ((k - middle[2]) / 30)[None, None, :] ** 2
    ) < 1
    tissue[(tissue == TISSUES.index("fluid")) & deep] = TISSUES.index("ventricle")
    tissue[~brain] = TISSUES.index("surroundings")
    return _centred(tissue, brain)[None]


def _tissues(path: Path) -> NDArray[np.uint8]:
    image = nibabel.as_closest_canonical(nibabel.load(path))
    labels = np.asanyarray(image.dataobj).astype(np.intp)
    table = np.full(max(600, int(labels.max()) + 1), TISSUES.index("surroundings"), np.uint8)
    table[0] = TISSUES.index("outside")
    for tissue, values in _FREESURFER.items():
        table[list(values)] = TISSUES.index(tissue)
    tissue = table[labels]
    inner = (tissue > TISSUES.index("fluid")) & (tissue < TISSUES.index("surroundings"))
    return _centred(tissue, inner)


def _centred(tissue: NDArray[np.uint8], brain: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Cut to ``HALF_MM`` about the middle of the brain's box; filled up with ``outside``."""
    where = np.argwhere(brain)
    middle = (where.min(axis=0) + where.max(axis=0)) // 2
    padded = np.pad(tissue, [(half, half) for half in HALF_MM])
    cut = tuple(slice(m, m + 2 * half) for m, half in zip(middle, HALF_MM, strict=True))
    return padded[cut]


def _ras(volumes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Axes (..., L, P, S) as R, A, S."""
    return np.ascontiguousarray(volumes[..., ::-1, ::-1, :])


def _middle(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Centroid of a mask in 128^3 on R, A, S, in mm about the middle of the brain."""
    return _to_mm(np.argwhere(mask).mean(axis=0))


def _to_mm(voxel: NDArray[np.float64]) -> NDArray[np.float64]:
    middle: NDArray[np.float64] = (voxel + 0.5) * SPACING_MM - ORIGIN_MM
    return middle


def _crops(files: list[Path], index: Path) -> _Crops:
    """Images, labels, where there is brain, and places of all crops."""
    origins: Mapping[tuple[str, int], list[int]] = {
        (entry["shard"], entry["row"]): entry["origin_in_128"] for entry in json.loads(index.read_text())
    }
    images, labels, inside, places = [], [], [], []
    for path in files:
        with np.load(path) as file:
            image, label, given = file["image"].astype(np.float32), file["label"], file["inside_crop"] > 0
        images.append(np.moveaxis(image, 1, -1)[:, ::-1, ::-1])
        labels.append(np.where(label == 4, 3, label).astype(np.uint8)[:, ::-1, ::-1])
        inside.append((given & (image != 0).any(axis=1))[:, ::-1, ::-1])
        for row in range(len(label)):
            middle = np.array(origins[path.name, row]) + 15.5
            places.append(_to_mm(np.array([127 - middle[0], 127 - middle[1], middle[2]])))
    return (
        np.ascontiguousarray(np.concatenate(images)),
        np.ascontiguousarray(np.concatenate(labels)),
        np.ascontiguousarray(np.concatenate(inside)),
        np.array(places, np.float32),
    )
