"""NIfTI files that no reader should accept, and the makers of good and bad ones."""

import gzip
from collections.abc import Callable

import nibabel
import numpy as np

__all__ = [
    "AFFINE",
    "CODES",
    "GOOD",
    "HOSTILE",
    "SHAPE",
    "header_for",
    "moved",
    "nifti",
    "packed",
    "patched",
    "voxels",
    "with_affine",
    "with_dims",
    "with_voxel",
]

SHAPE = (9, 8, 10)
AFFINE = np.array([[-1.0, 0, 0, 90], [0, -1, 0, 120], [0, 0, 1.5, -70], [0, 0, 0, 1]])
CODES = {"u1": 2, "i2": 4, "i4": 8, "f4": 16, "f8": 64, "i1": 256, "u2": 512, "u4": 768, "i8": 1024}


def voxels(dtype: str = "i2", shape: tuple[int, ...] = SHAPE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 100, shape).astype(dtype)


def header_for(data: np.ndarray, affine: np.ndarray = AFFINE, version: int = 1, order: str = "<"):
    """A good header, both forms coded, for data of a type that NIfTI knows."""
    header = (nibabel.Nifti1Header if version == 1 else nibabel.Nifti2Header)(endianness=order)
    header.set_data_dtype(data.dtype)
    header.set_data_shape(data.shape)
    header.set_qform(affine, code=1)
    header.set_sform(affine, code=1)
    header["vox_offset"] = header.sizeof_hdr + 4
    header["scl_slope"] = 1
    return header


def nifti(data: np.ndarray | None = None, header=None, *, gap: int = 4, **fields: object) -> bytes:
    """The bytes of a .nii file, with some header fields set to whatever a test wants."""
    data = voxels() if data is None else data
    header = header_for(data) if header is None else header
    for name, value in fields.items():
        header[name] = value
    ordered = data.astype(data.dtype.newbyteorder(header.endianness))
    return header.binaryblock + bytes(gap) + ordered.tobytes(order="F")


def packed(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


def patched(content: bytes, at: int, value: bytes) -> bytes:
    return content[:at] + value + content[at + len(value) :]


def with_dims(*dims: int) -> bytes:
    return nifti(dim=[*dims, *[1] * (8 - len(dims))])


def with_voxel(value: float) -> bytes:
    data = voxels("f4")
    data[4, 4, 4] = value
    return nifti(data, header_for(data))


def with_affine(affine: np.ndarray, **fields: object) -> bytes:
    header = header_for(voxels())
    header.set_sform(affine, code=1)
    return nifti(header=header, **{"qform_code": 0, **fields})


def sheared() -> np.ndarray:
    affine = AFFINE.copy()
    affine[0, 1] = 0.1
    return affine


def hounsfield() -> np.ndarray:
    data = voxels() - 20
    data[:3], data[5:6, :2] = -1024, 900
    return data


def no_quaternion() -> bytes:
    return nifti(quatern_b=1, quatern_c=1, quatern_d=1)


def moved(mm: float) -> bytes:
    affine = AFFINE.copy()
    affine[2, 3] += mm
    return with_affine(affine, qform_code=1)


def mirrored() -> bytes:
    affine = AFFINE.copy()
    affine[0] *= -1
    return with_affine(affine, qform_code=1)


GOOD = nifti()
HOSTILE: dict[str, tuple[str, Callable[[], bytes]]] = {
    "no bytes": ("E_EMPTY", lambda: b""),
    "two bytes of gzip": ("E_TRUNCATED", lambda: b"\x1f\x8b"),
    "gzip of nothing": ("E_NOT_NIFTI", lambda: packed(b"")),
    "text": ("E_NOT_NIFTI", lambda: b"patient,age\n" * 100),
    "a DICOM file": ("E_NOT_NIFTI", lambda: bytes(128) + b"DICM" + bytes(1000)),
    "zeros": ("E_NOT_NIFTI", lambda: bytes(4000)),
    "an Analyze header": ("E_NOT_NIFTI", lambda: patched(GOOD, 344, bytes(4))),
    "half a pair": ("E_NOT_NIFTI", lambda: patched(GOOD, 344, b"ni1\0")),
    "NIfTI-2 with broken line ends": (
        "E_NOT_NIFTI",
        lambda: patched(nifti(header=header_for(voxels(), version=2)), 8, b"\n\n\x1a\n"),
    ),
    "half a header": ("E_TRUNCATED", lambda: GOOD[:200]),
    "a header alone": ("E_TRUNCATED", lambda: GOOD[:352]),
    "one byte short": ("E_TRUNCATED", lambda: GOOD[:-1]),
    "one byte short inside": ("E_TRUNCATED", lambda: packed(GOOD[:-1])),
    "gzip cut in its data": ("E_TRUNCATED", lambda: packed(GOOD)[:-200]),
    "gzip without its length": ("E_TRUNCATED", lambda: packed(GOOD)[:-4]),
    "gzip without its checksum": ("E_TRUNCATED", lambda: packed(GOOD)[:-8]),
    "a wrong checksum": ("E_GZIP", lambda: packed(GOOD)[:-8] + b"abcd" + packed(GOOD)[-4:]),
    "a wrong length": ("E_GZIP", lambda: packed(GOOD)[:-4] + b"abcd"),
    "an unknown compression": ("E_GZIP", lambda: patched(packed(GOOD), 2, b"\7")),
    "one byte too many": ("E_TRAILING", lambda: GOOD + b"\0"),
    "one byte too many inside": ("E_TRAILING", lambda: packed(GOOD + b"\0")),
    "text behind the gzip": ("E_TRAILING", lambda: packed(GOOD) + b"the end"),
    "a second image behind the gzip": ("E_TRAILING", lambda: packed(GOOD) * 2),
    "two dimensions": ("E_NDIM", lambda: with_dims(2, 9, 80)),
    "a single slice": ("E_NDIM", lambda: with_dims(3, 9, 80, 1)),
    "a time series": ("E_NDIM", lambda: with_dims(4, 9, 8, 5, 2)),
    "five dimensions": ("E_NDIM", lambda: with_dims(5, 9, 8, 5, 1, 2)),
    "no dimensions": ("E_NDIM", lambda: with_dims(0, 9, 8, 10)),
    "99 dimensions": ("E_NDIM", lambda: with_dims(99, 9, 8, 10)),
    "a negative dimension": ("E_DIMS", lambda: with_dims(3, -9, 8, 10)),
    "a dimension of zero": ("E_DIMS", lambda: with_dims(3, 9, 0, 10)),
    "too few slices": ("E_DIMS", lambda: with_dims(3, 9, 8, 7)),
    "a dimension of 32767": ("E_DIMS", lambda: with_dims(3, 9, 8, 32767)),
    "2000 voxels cubed": ("E_TOO_BIG", lambda: with_dims(3, 2000, 2000, 2000)),
    "a shape beyond its bytes": ("E_TRUNCATED", lambda: packed(with_dims(3, 500, 500, 500))),
    "complex voxels": ("E_DTYPE", lambda: nifti(datatype=32, bitpix=64)),
    "coloured voxels": ("E_DTYPE", lambda: nifti(datatype=128, bitpix=24)),
    "an unknown type": ("E_DTYPE", lambda: nifti(datatype=5)),
    "bits that are not the type's": ("E_DTYPE", lambda: nifti(bitpix=8)),
    "data inside the header": ("E_OFFSET", lambda: nifti(vox_offset=0)),
    "a negative offset": ("E_OFFSET", lambda: nifti(vox_offset=-352)),
    "a broken offset": ("E_OFFSET", lambda: nifti(vox_offset=352.5)),
    "an offset of NaN": ("E_OFFSET", lambda: nifti(vox_offset=np.nan)),
    "an offset of a gigabyte": ("E_OFFSET", lambda: nifti(vox_offset=1e9)),
    "an offset past the end": ("E_TRUNCATED", lambda: nifti(vox_offset=5000)),
    "a slope of infinity": ("E_SCALE", lambda: nifti(scl_slope=np.inf)),
    "a slope of 1e30": ("E_SCALE", lambda: nifti(scl_slope=1e30)),
    "an intercept of NaN": ("E_SCALE", lambda: nifti(scl_inter=np.nan)),
    "no form": ("E_NO_AFFINE", lambda: nifti(qform_code=0, sform_code=0)),
    "a negative form code": ("E_AFFINE", lambda: nifti(sform_code=-1)),
    "an sform of NaN": ("E_AFFINE", lambda: nifti(srow_x=[np.nan, 0, 0, 0])),
    "an infinite position": ("E_AFFINE", lambda: nifti(qoffset_x=np.inf, sform_code=0)),
    "a position on the moon": ("E_AFFINE", lambda: nifti(srow_x=[-1, 0, 0, 4e11])),
    "no quaternion": ("E_AFFINE", no_quaternion),
    "a handedness of 3": ("E_AFFINE", lambda: nifti(pixdim=[3, 1, 1, 1.5, 1, 1, 1, 1])),
    "an sform of zeros": ("E_SPACING", lambda: with_affine(np.zeros((4, 4)))),
    "voxels of 40 mm": ("E_SPACING", lambda: with_affine(AFFINE * 40)),
    "pixdim of zeros": ("E_SPACING", lambda: nifti(pixdim=np.zeros(8), sform_code=0)),
    "pixdim that contradicts the sform": (
        "E_SPACING",
        lambda: nifti(pixdim=[1, 2, 2, 2, 1, 1, 1, 1], qform_code=0),
    ),
    "micrometres": ("E_SPACING", lambda: nifti(xyzt_units=3)),
    "a sheared sform": ("E_SHEAR", lambda: with_affine(sheared())),
    "a flat sform": ("E_SHEAR", lambda: with_affine(AFFINE[:, [0, 0, 2, 3]])),
    "forms 0.2 mm apart": ("E_FORMS_DISAGREE", lambda: moved(0.2)),
    "forms that mirror each other": ("E_FORMS_DISAGREE", mirrored),
    "one NaN": ("E_NONFINITE", lambda: with_voxel(np.nan)),
    "one infinity": ("E_NONFINITE", lambda: with_voxel(-np.inf)),
    "floats beyond float32": (
        "E_NONFINITE",
        lambda: nifti(voxels("f8") * 1e300, header_for(voxels("f8"))),
    ),
    "floats in the wrong byte order": ("E_SCALE", lambda: with_voxel(3e38)),
    "one value everywhere": ("E_CONSTANT", lambda: nifti(np.full(SHAPE, 7, "i2"))),
    "a CT": ("E_NOT_MR", lambda: nifti(hounsfield())),
    "a CT stored with an intercept": ("E_NOT_MR", lambda: nifti(hounsfield() + 1024, scl_inter=-1024)),
}
