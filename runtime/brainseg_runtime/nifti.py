"""Read and write NIfTI, believing nothing of a file that was not checked."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from isal import isal_zlib
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from brainseg_runtime.errors import ScanRefused
from brainseg_runtime.files import Content, open_regular, trailing, truncated, write_atomically
from brainseg_runtime.geometry import Affine, Geometry, HeaderGeometry

__all__ = [
    "Image",
    "StoredImage",
    "measure_image",
    "open_image",
    "read_image",
    "read_labels",
    "write_image",
    "write_labels",
]

MAX_FILE_BYTES = 2 << 30
MAX_VOXELS = 1 << 28
"""Over all frames: 640 voxels cubed, or 240 x 240 x 155 thirty times."""
MIN_DIM, MAX_DIM = 8, 2048
"""Accepted voxels per axis; fewer than eight slices show no brain."""
MAX_OFFSET = 1 << 20
MAX_SLOPE = 1e6
MAX_INTENSITY = 1e12
"""Beyond any scanner, and its square fits float32; floats in the wrong byte order exceed it."""
SPACING_MM = (0.05, 20.0)
MAX_POSITION_MM = 1e5
FORMS_MM = 0.1
"""How far apart qform and sform may put one corner."""
MAX_LEAN = 2e-3
"""Largest cosine between two voxel axes: 0.1 degrees."""
DEFLATE_RATIO = 1032
"""The most bytes that one byte of deflate can stand for."""

_BYTE_ORDERS: dict[str, Literal["little", "big"]] = {"<": "little", ">": "big"}
_HEADER_SIZES = {
    size.to_bytes(4, order): (size, sign) for size in (348, 540) for sign, order in _BYTE_ORDERS.items()
}
"""The first four bytes of a header -> its size, which is NIfTI's version, and its byte order."""
_DTYPES = {
    **{2: "u1", 512: "u2", 768: "u4", 1280: "u8"},
    **{256: "i1", 4: "i2", 8: "i4", 1024: "i8"},
    **{16: "f4", 64: "f8"},
}
"""NIfTI's codes for the real numbers; complex, colour and 128-bit images are no MRI."""
_COPY_AGAIN = "Copy it again from its source."
_EXPORT_AGAIN = "Export it again from its source."

Voxels = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Image:
    """A file's voxels on their grid."""

    data: Voxels
    """(I, J, K), or (I, J, K, T) where the caller asked for frames; Fortran order."""
    geometry: Geometry
    sha256: str
    """Of the bytes on disk."""
    file: str
    """The file's name, without its folder."""


@dataclass(frozen=True, eq=False)
class StoredImage:
    """A file whose header is checked and whose bytes are complete; its voxels are not yet decoded."""

    voxels: NDArray[Any]
    """(I, J, K, T) as stored, Fortran order."""
    scaling: tuple[float, float] | None
    """Slope and intercept, if the file has any."""
    geometry: Geometry
    sha256: str
    file: str

    @property
    def frames(self) -> int:
        """T: 1 for a three-dimensional file."""
        return int(self.voxels.shape[3])

    def decode(self, out: Voxels, frame: int = 0, *, intensities: bool = True) -> None:
        """Fill ``out`` (I, J, K) with one frame; ``intensities`` says that it should be an MRI.

        Raises:
            ScanRefused: ``E_NONFINITE``, ``E_SCALE``; of intensities ``E_CONSTANT``, ``E_NOT_MR``.
        """
        stored = self.voxels[..., frame]
        with np.errstate(over="ignore", invalid="ignore"):
            if self.scaling is None:
                out[...] = stored
            else:
                slope, inter = (np.float64(number) for number in self.scaling)
                for k in range(out.shape[2]):  # float64 for one slice, not for the whole image
                    out[:, :, k] = stored[:, :, k] * slope + inter
            low, high = float(out.min()), float(out.max())
        if not math.isfinite(low + high):
            raise _refuse("E_NONFINITE", self.file, "holds NaN or infinite voxels", _EXPORT_AGAIN)
        if max(-low, high) > MAX_INTENSITY:
            raise _refuse("E_SCALE", self.file, f"holds values from {low:g} to {high:g}", _EXPORT_AGAIN)
        if intensities and low == high:
            raise _refuse("E_CONSTANT", self.file, f"is {low:g} everywhere", _EXPORT_AGAIN)
        if intensities and _is_hounsfield(out, low, high):
            raise _refuse(
                "E_NOT_MR",
                self.file,
                f"has the intensities of a CT, from {low:g} to {high:g} with air near -1000",
                "Give an MRI.",
            )


def read_image(path: Path, root: Path | None = None, *, frames: bool = False) -> Image:
    """Read an MRI from a NIfTI-1 or NIfTI-2 file, gzipped or not.

    ``root`` is the folder that links must not leave. ``frames`` accepts four dimensions and always
    gives (I, J, K, T).

    Raises:
        ScanRefused: with the code of the first check that the file does not pass.
    """
    stored = open_image(path, root, frames=frames)
    data = np.empty(stored.voxels.shape, np.float32, order="F")
    for frame in range(stored.frames):
        stored.decode(data[..., frame], frame)
    return Image(data if frames else data[..., 0], stored.geometry, stored.sha256, stored.file)


def read_labels(
    path: Path, root: Path | None = None, *, thin: bool = False
) -> tuple[NDArray[np.uint8], Geometry]:
    """Read a label image: uint8 (I, J, K), Fortran order, and its grid.

    A constant image is accepted, for an empty truth is an answer; ``thin`` as for ``open_image``.

    Raises:
        ScanRefused: ``E_LABELS`` if values are not integers in 0..255, else as ``read_image``.
    """
    stored = open_image(path, root, thin=thin)
    values = np.empty(stored.geometry.shape, np.float32, order="F")
    stored.decode(values, intensities=False)
    labels = np.rint(values)
    # A label stored with a slope comes back as 0.99999997, which is still a 1.
    if labels.min() < 0 or labels.max() > 255 or np.abs(values - labels).max() > 1e-3:
        raise _refuse(
            "E_LABELS",
            stored.file,
            f"holds values other than the integers 0..255 (from {values.min():g} to {values.max():g})",
            "Give a label image.",
        )
    return labels.astype(np.uint8), stored.geometry


def open_image(
    path: Path, root: Path | None = None, *, frames: bool = False, thin: bool = False
) -> StoredImage:
    """Check a file's header and inflate its bytes to their very end, checksum included.

    ``thin`` accepts an axis of fewer voxels than a head has, down to the one of a single slice.
    What a file claims is not allocated before its size makes the claim possible.

    Raises:
        ScanRefused: with the code of the first check that the file does not pass.
    """
    with open_regular(path, root) as file:
        content, header = _checked(file, path.name, frames, thin)
        content.read_into(memoryview(bytearray(header.gap)))  # extensions, which say nothing of the voxels
        voxels = _read_voxels(content, header.shape, header.dtype)
    return StoredImage(voxels, header.scaling, header.geometry, content.sha256, path.name)


def measure_image(
    path: Path, root: Path | None = None, *, frames: bool = False, thin: bool = False
) -> tuple[Geometry, int]:
    """The grid of an image, and how many bytes ``open_image`` takes for its voxels; none is read.

    Raises:
        ScanRefused: for a header as ``open_image``.
    """
    with open_regular(path, root) as file:
        _, header = _checked(file, path.name, frames, thin)
    return header.geometry, header.bytes


def write_labels(path: Path, labels: NDArray[np.uint8], geometry: Geometry) -> str:
    """Write labels (I, J, K), or one mask per region (I, J, K, R), gzipped unless ``path`` ends in .nii.

    The header geometry of the file that the grid was read from is repeated field for field. Equal
    labels give equal bytes. Returned is the file's SHA-256.

    Raises:
        OutputUnwritable: ``E_OUTPUT``.
    """
    if labels.dtype != np.uint8:
        raise ValueError(f"labels are uint8. Received: {labels.dtype}")
    return _write(path, labels, geometry)


def write_image(path: Path, data: NDArray[np.float32] | NDArray[np.int16], geometry: Geometry) -> None:
    """Write intensities (I, J, K), float32 or int16, as ``write_labels`` does.

    Raises:
        OutputUnwritable: ``E_OUTPUT``.
    """
    if data.dtype not in (np.float32, np.int16):
        raise ValueError(f"an image is float32 or int16. Received: {data.dtype}")
    _write(path, data, geometry)


@dataclass(frozen=True)
class _Checked:
    """What a header says, after every check."""

    shape: tuple[int, int, int, int]
    dtype: np.dtype[Any]
    scaling: tuple[float, float] | None
    geometry: Geometry
    gap: int
    """Bytes between header and voxels."""

    @property
    def bytes(self) -> int:
        """Of all voxels as stored."""
        return math.prod(self.shape) * self.dtype.itemsize


def _checked(file: BinaryIO, name: str, frames: bool, thin: bool) -> tuple[Content, _Checked]:
    """A file's content behind its header, and what that says."""
    size = os.fstat(file.fileno()).st_size
    if size == 0:
        raise _refuse("E_EMPTY", name, "has no bytes", _COPY_AGAIN)
    if size > MAX_FILE_BYTES:
        raise _refuse("E_TOO_BIG", name, f"has {size} bytes", "Give the MRI of one head.")
    content = Content(file, name)
    header = _read_header(content)
    shape = _check_shape(header, name, frames, thin)
    dtype = _check_dtype(header, name)
    scaling = _check_scaling(header, name)
    geometry = _check_placement(header, (shape[0], shape[1], shape[2]), name)
    gap = _check_offset(header, name) - header.sizeof_hdr
    checked = _Checked(shape, dtype, scaling, geometry, gap)
    _check_size(content, size, header.sizeof_hdr + gap, checked.bytes)
    return content, checked


def _read_header(content: Content) -> Nifti1Header:
    """The header as nibabel's object, in the file's byte order."""
    block = bytearray(540)
    view = memoryview(block)
    got = content.read_into(view[:4])
    size, order = _HEADER_SIZES.get(bytes(view[:got]), (0, ""))
    if not size:
        raise _refuse("E_NOT_NIFTI", content.name, "has no NIfTI header", "Convert it to NIfTI.")
    if content.read_into(view[4:size]) < size - 4:
        raise truncated(content.name)
    magic, at = (b"n+1\0", 344) if size == 348 else (b"n+2\0\r\n\x1a\n", 4)
    if not block.startswith(magic, at):
        raise _refuse(
            "E_NOT_NIFTI",
            content.name,
            "is not a single-file NIfTI",
            "Convert Analyze files and pairs of .hdr and .img to one .nii.gz file.",
        )
    header = Nifti1Header if size == 348 else Nifti2Header
    return header(bytes(view[:size]), order, check=False)


def _check_shape(header: Nifti1Header, name: str, frames: bool, thin: bool) -> tuple[int, int, int, int]:
    """(I, J, K, T) voxels; T is 1 unless ``frames``."""
    dims = [int(n) for n in header["dim"]]
    shape = dims[1 : dims[0] + 1] if 1 <= dims[0] <= 7 else []
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if len(shape) == 3:
        shape.append(1)
    flat = 1 in shape[:3] and not thin
    if len(shape) != 4 or flat or (shape[3] != 1 and not frames):
        raise _refuse(
            "E_NDIM",
            name,
            f"has the dimensions {tuple(dims[1:])} with {dims[0]} in use",
            "Give a three-dimensional image.",
        )
    smallest = sorted(shape[:3])[1 if thin else 0]
    if smallest < MIN_DIM or min(shape) < 1 or max(shape[:3]) > MAX_DIM:
        raise _refuse(
            "E_DIMS",
            name,
            f"has the shape {tuple(shape)}",
            f"Give an image of {MIN_DIM} to {MAX_DIM} voxels per axis.",
        )
    if math.prod(shape) > MAX_VOXELS:
        raise _refuse("E_TOO_BIG", name, f"has the shape {tuple(shape)}", "Give the MRI of one head.")
    return shape[0], shape[1], shape[2], shape[3]


def _check_dtype(header: Nifti1Header, name: str) -> np.dtype[Any]:
    """The voxels' type, in the file's byte order."""
    code, bits = int(header["datatype"]), int(header["bitpix"])
    if code not in _DTYPES:
        raise _refuse("E_DTYPE", name, f"has voxels of type {code}", "Save it as integers or as floats.")
    dtype = np.dtype(_DTYPES[code]).newbyteorder(header.endianness)
    if bits != 8 * dtype.itemsize:
        raise _refuse("E_DTYPE", name, f"claims {bits} bits for a voxel of {dtype}", _EXPORT_AGAIN)
    return dtype


def _check_offset(header: Nifti1Header, name: str) -> int:
    """Where the voxels begin, in bytes."""
    offset = float(header["vox_offset"])
    if not header.sizeof_hdr + 4 <= offset <= MAX_OFFSET or offset % 1:
        raise _refuse("E_OFFSET", name, f"claims that its data begin at {offset:g}", _EXPORT_AGAIN)
    return int(offset)


def _check_scaling(header: Nifti1Header, name: str) -> tuple[float, float] | None:
    """Slope and intercept, if there are any; a slope of 0 or NaN means none."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or math.isnan(slope) or (slope, inter) == (1, 0):
        return None
    # Written so that NaN and infinity fail too.
    if not (abs(slope) <= MAX_SLOPE and abs(inter) <= MAX_INTENSITY):
        raise _refuse("E_SCALE", name, f"is scaled by {slope:g} and {inter:g}", _EXPORT_AGAIN)
    return slope, inter


def _check_placement(header: Nifti1Header, shape: tuple[int, int, int], name: str) -> Geometry:
    """The grid that qform, sform or both agree on."""
    spelling = _spelling(header)
    codes = spelling.qform_code, spelling.sform_code
    if codes == (0, 0):
        raise _refuse("E_NO_AFFINE", name, "has neither qform nor sform", _EXPORT_AGAIN)
    if not all(0 <= code <= 5 for code in codes):
        raise _refuse("E_AFFINE", name, f"has qform and sform codes {codes}", _EXPORT_AGAIN)
    if spelling.xyzt_units & 7 in (1, 3):
        raise _refuse("E_SPACING", name, "is not measured in mm", "Export it in millimetres.")
    with np.errstate(all="ignore"):
        forms = [header.get_sform()] if spelling.sform_code else []
        if spelling.qform_code:
            forms.append(_qform(header, name))
        for affine in forms:
            _check_affine(affine, spelling, name)
    grids = [Geometry(shape, affine, spelling) for affine in forms]
    apart = grids[0].distance(grids[-1])
    if apart > FORMS_MM:
        raise _refuse(
            "E_FORMS_DISAGREE",
            name,
            f"has a qform and an sform that are {apart:.3g} mm apart",
            "Find out which one is right and write it to both.",
        )
    return grids[0]


def _qform(header: Nifti1Header, name: str) -> Affine:
    if header["pixdim"][0] == 0:
        header["pixdim"][0] = 1  # what the standard says of an absent handedness
    parts = [f"quatern_{part}" for part in "bcd"]
    length = math.hypot(*(float(header[part]) for part in parts))
    # A half turn's quaternion is often longer than 1 by rounding; of NIfTI-2 nibabel takes that for an error.
    if 1 < length < 1 + 1e-9:
        for part in parts:
            header[part] = header[part] / length
    try:
        affine: Affine = header.get_qform()
    except (HeaderDataError, ValueError) as error:
        raise _refuse("E_AFFINE", name, f"has no valid qform ({error})", _EXPORT_AGAIN) from error
    return affine


def _check_affine(affine: Affine, spelling: HeaderGeometry, name: str) -> None:
    if not (np.isfinite(affine).all() and np.abs(affine[:3, 3]).max() <= MAX_POSITION_MM):
        raise _refuse("E_AFFINE", name, f"is placed by {affine[:3].tolist()}", _EXPORT_AGAIN)
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    claimed = np.array(spelling.pixdim[1:])
    if not all(SPACING_MM[0] <= mm <= SPACING_MM[1] for mm in sizes):
        raise _refuse("E_SPACING", name, f"has voxels of {_mm(sizes)}", _EXPORT_AGAIN)
    if not (np.abs(claimed - sizes) <= 0.01 * sizes).all():
        raise _refuse(
            "E_SPACING",
            name,
            f"has voxels of {_mm(sizes)} by its affine and of {_mm(claimed)} by its pixdim",
            _EXPORT_AGAIN,
        )
    axes = affine[:3, :3] / sizes
    lean = float(np.abs(axes.T @ axes - np.eye(3)).max())
    if lean > MAX_LEAN:
        degrees = math.degrees(math.asin(min(lean, 1.0)))
        raise _refuse(
            "E_SHEAR",
            name,
            f"has voxel axes that lean by {degrees:.2g} degrees",
            "Resample it to a rectangular grid.",
        )


def _check_size(content: Content, size: int, before: int, voxels: int) -> None:
    """Refuse what cannot fit before memory is taken for it; all counts in bytes."""
    if content.compressed:
        if voxels > size * DEFLATE_RATIO:
            raise truncated(content.name)
    elif size < before + voxels:
        raise truncated(content.name)
    elif size > before + voxels:
        raise trailing(content.name)


def _read_voxels(content: Content, shape: tuple[int, int, int, int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """All voxels as stored, and proof that nothing follows them."""
    data = np.empty(math.prod(shape) * dtype.itemsize, np.uint8)
    if content.read_into(data.data) < data.size:
        raise truncated(content.name)
    # Asking for one byte more is what takes the inflater to the checksum.
    if content.read_into(memoryview(bytearray(1))):
        raise trailing(content.name)
    return data.view(dtype).reshape(shape, order="F")


def _is_hounsfield(data: Voxels, low: float, high: float) -> bool:
    """Whether intensities are a head's CT numbers: air near -1000, tissue near 0, little between."""
    if low > -900 or high < 200:
        return False
    air, between, tissue = (
        float(np.mean((data >= start) & (data <= end)))
        for start, end in ((-1100, -900), (-850, -250), (-200, 200))
    )
    return min(air, tissue) > max(between, 0.01)


def _spelling(header: Nifti1Header) -> HeaderGeometry:
    """The geometry fields of a header as they stand."""
    b, c, d, x, y, z = (
        float(header[name])
        for name in ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
    )
    qfac, i, j, k = (float(number) for number in header["pixdim"][:4])
    rows = [tuple(float(n) for n in header[f"srow_{axis}"]) for axis in "xyz"]
    return HeaderGeometry(
        version=1 if header.sizeof_hdr == 348 else 2,
        pixdim=(qfac, i, j, k),
        xyzt_units=int(header["xyzt_units"]),
        qform_code=int(header["qform_code"]),
        quaternion=(b, c, d),
        qoffset=(x, y, z),
        sform_code=int(header["sform_code"]),
        srow=(rows[0], rows[1], rows[2]),
    )


def _write(path: Path, data: NDArray[Any], geometry: Geometry) -> str:
    if data.ndim not in (3, 4) or data.shape[:3] != geometry.shape:
        raise ValueError(f"the grid has the shape {geometry.shape}. Received: {data.shape}")
    header = _header_for(geometry, data)
    if _check_placement(header.copy(), geometry.shape, path.name).distance(geometry) > FORMS_MM / 10:
        raise ValueError("the grid's affine is not the one that its header spells")
    # The header, four bytes that say that no extension follows, the voxels with I running fastest.
    pieces = [header.binaryblock, bytes(4), _little(data).tobytes(order="F")]
    if not path.name.lower().endswith(".nii"):
        deflater = isal_zlib.compressobj(1, wbits=31)  # its gzip header holds no name and no time
        pieces = [*(deflater.compress(piece) for piece in pieces), deflater.flush()]
    return write_atomically(path, b"".join(pieces))


def _header_for(geometry: Geometry, data: NDArray[Any]) -> Nifti1Header:
    """A nibabel header that places ``data`` on the grid."""
    spelling = geometry.header
    header = (Nifti2Header if spelling and spelling.version == 2 else Nifti1Header)(endianness="<")
    header.set_data_dtype(_little(data).dtype)
    header.set_data_shape(data.shape)
    header["vox_offset"] = header.sizeof_hdr + 4
    header["scl_slope"], header["scl_inter"] = 1, 0
    if spelling is None:
        _spell_affine(header, geometry)
        return header
    header["pixdim"][:4] = spelling.pixdim
    header["xyzt_units"] = spelling.xyzt_units
    header["qform_code"], header["sform_code"] = spelling.qform_code, spelling.sform_code
    for n, (part, axis) in enumerate(zip("bcd", "xyz", strict=True)):
        header[f"quatern_{part}"] = spelling.quaternion[n]
        header[f"qoffset_{axis}"] = spelling.qoffset[n]
        header[f"srow_{axis}"] = spelling.srow[n]
    return header


def _spell_affine(header: Nifti1Header, geometry: Geometry) -> None:
    """Both forms from a bare affine; the sform alone where a quaternion cannot express it."""
    header.set_xyzt_units("mm")
    header.set_qform(geometry.affine, code=1)
    placed = Geometry(geometry.shape, header.get_qform())
    if placed.distance(Geometry(geometry.shape, geometry.affine)) > FORMS_MM / 10:
        header["qform_code"] = 0
    header.set_sform(geometry.affine, code=1)


def _little(data: NDArray[Any]) -> NDArray[Any]:
    return data.astype(data.dtype.newbyteorder("<"), copy=False)


def _mm(sizes: NDArray[np.float64]) -> str:
    return " x ".join(f"{mm:.4g}" for mm in sizes) + " mm"


def _refuse(code: str, name: str, what: str, remedy: str) -> ScanRefused:
    return ScanRefused(code, f"{name} {what}.", remedy)
