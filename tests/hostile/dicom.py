"""DICOM series and archives that no reader should accept, and random damage to files."""

import io
import struct
import tarfile
import zipfile
import zlib

import numpy as np
from dicoms import SAGITTAL, Grid, Made, series

__all__ = ["ARCHIVES", "FAULTS", "FILES", "archive_of", "changed", "mutant", "shifted", "without_some"]


def shifted(dataset, vector):
    place = np.array([float(v) for v in dataset.ImagePositionPatient]) + vector
    dataset.ImagePositionPatient = [f"{v:.10g}" for v in place]


def without_some(datasets, *gone):
    return [dataset for n, dataset in enumerate(datasets) if n not in gone]


def doubled_slice(datasets):
    again = series(Made(name=""))[5]
    again.SOPInstanceUID = again.file_meta.MediaStorageSOPInstanceUID = "2.25.99"
    return [*datasets, again]


def sheared(datasets):
    for n, dataset in enumerate(datasets):
        shifted(dataset, n * 3.0 * np.tan(np.deg2rad(15)) * Grid().axes[1])
    return datasets


def one_gap(datasets):
    for dataset in datasets[8:]:
        shifted(dataset, 0.35 * Grid().axes[2])
    return datasets


def two_echoes(datasets):
    for n, dataset in enumerate(series(Made().with_header(EchoTime=90))):
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"2.25.{1000 + n}"
        datasets.append(dataset)
    return datasets


def localizer(datasets):
    for n, dataset in enumerate(series(Made(grid=Grid(start=SAGITTAL, slices=8)))[:3]):
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"2.25.{2000 + n}"
        datasets.append(dataset)
    return datasets


def changed(index, **fields):
    def change(datasets):
        for dataset in datasets if index is None else [datasets[index]]:
            for name, value in fields.items():
                if value is None:
                    delattr(dataset, name)
                else:
                    setattr(dataset, name, value)
        return datasets

    return change


FAULTS = {
    "one slice missing": (lambda d: without_some(d, 9), "E_SERIES_IRREGULAR"),
    "three slices missing": (lambda d: without_some(d, 4, 9, 10), "E_SERIES_IRREGULAR"),
    "a slice doubled": (doubled_slice, "E_SERIES_IRREGULAR"),
    "sheared": (sheared, "E_SERIES_IRREGULAR"),
    "uneven gap": (one_gap, "E_SERIES_IRREGULAR"),
    "two echoes": (two_echoes, "E_SERIES_IRREGULAR"),
    "localizer mixed in": (localizer, "E_SERIES_IRREGULAR"),
    "another spacing": (changed(3, PixelSpacing=[1.25, 1.1]), "E_SERIES_IRREGULAR"),
    "another size": (changed(3, Rows=40), "E_SERIES_IRREGULAR"),
    "colour": (changed(None, PhotometricInterpretation="RGB", SamplesPerPixel=3), "E_SERIES_IRREGULAR"),
    "inverted grey": (changed(None, PhotometricInterpretation="MONOCHROME1"), "E_SERIES_IRREGULAR"),
    "mosaic": (changed(None, ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"]), "E_SERIES_IRREGULAR"),
    "no position": (changed(7, ImagePositionPatient=None), "E_SERIES_IRREGULAR"),
    "no spacing": (changed(None, PixelSpacing=None), "E_SERIES_IRREGULAR"),
    "another frame": (changed(4, FrameOfReferenceUID="2.25.5"), "E_FRAME_OF_REFERENCE"),
    "no frame": (changed(None, FrameOfReferenceUID=None), "E_FRAME_OF_REFERENCE"),
    "axes of no length": (changed(None, ImageOrientationPatient=[0, 0, 0, 0, 0, 0]), "E_AFFINE"),
    "slope of zero": (changed(2, RescaleSlope=0, RescaleIntercept=0), "E_SCALE"),
    "slope beyond reason": (changed(2, RescaleSlope=1e30, RescaleIntercept=0), "E_SCALE"),
    "too few slices": (lambda d: d[:5], "E_DIMS"),
    "voxels of 30 mm": (changed(None, PixelSpacing=[30, 30]), "E_SPACING"),
    "pixels cut off": (changed(2, PixelData=b"\0" * 100), "E_DICOM_DAMAGED"),
    "a CT": (changed(None, SOPClassUID="1.2.840.10008.5.1.4.1.1.2", Modality="CT"), "E_NOT_MR"),
}


def element(group, number, kind, value):
    """A field of file meta information, or of a data set, Explicit VR Little Endian."""
    head = struct.pack("<HH2s", group, number, kind)
    long = kind in (b"OB", b"OW", b"UN")
    return head + (struct.pack("<HI", 0, len(value)) if long else struct.pack("<H", len(value))) + value


DEFLATED = element(2, 0x10, b"UI", b"1.2.840.10008.1.2.1.99")


def bomb(meta, before=b""):
    """A megabyte that pydicom inflates to more than a gigabyte, behind some file meta information."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    pixels = struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OW", 0, 1025 << 20)
    first = packer.compress(pixels) + packer.flush(zlib.Z_FULL_FLUSH)
    zeros = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return bytes(128) + b"DICM" + meta + before + first + 1025 * zeros + packer.flush()


FILES = {
    "a bomb": (lambda: bomb(element(2, 0, b"UL", struct.pack("<I", len(DEFLATED))) + DEFLATED), "E_TOO_BIG"),
    "a bomb behind much meta": (
        lambda: bomb(element(2, 1, b"OB", b"\0\1") + element(2, 3, b"UI", b"1" * 1000) + DEFLATED),
        "E_TOO_BIG",
    ),
    "a bomb behind a wrong length": (
        lambda: bomb(element(2, 0, b"UL", struct.pack("<I", 4)) + DEFLATED),
        "E_TOO_BIG",
    ),
    "a bomb behind a command": (lambda: bomb(DEFLATED, struct.pack("<HHI", 0, 0xFF00, 0)), "E_TOO_BIG"),
    "a bomb behind a name of the same": (
        lambda: bomb(element(2, 0x10, b"UI", b"1.2.840.10008.1.2.1\0") + DEFLATED),
        "E_TOO_BIG",
    ),
    "no deflate stream": (lambda: bytes(128) + b"DICM" + DEFLATED + b"\xff" * 400, "E_DICOM_DAMAGED"),
    "meta without an end": (lambda: bytes(128) + b"DICM" + DEFLATED[:-4], "E_DICOM_DAMAGED"),
}
"""Single files, each refused before it takes much memory."""


def archive_of(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def holding(*members):
    return lambda path: archive_of(path, members)


def renamed(*names):
    """Members under names that zipfile does not write: each takes as many characters as there were."""

    def write(path):
        archive_of(path, [(chr(65 + n) * len(name), b"x") for n, name in enumerate(names)])
        data = path.read_bytes()
        for n, name in enumerate(names):
            data = data.replace(chr(65 + n).encode() * len(name), name)
        path.write_bytes(data)
        return path

    return write


def encrypted(path):
    data = bytearray(archive_of(path, [("x", b"x")]).read_bytes())
    for head, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(head) + flags] |= 1
    path.write_bytes(data)
    return path


def tar(mode):
    def write(path):
        with tarfile.open(path, mode) as archive:
            archive.addfile(tarfile.TarInfo("IM00001"), io.BytesIO())
        return path

    return write


ARCHIVES = {
    "climbs": (holding(("../../etc/x", b"x")), "E_ZIP"),
    "absolute": (holding(("/etc/x", b"x")), "E_ZIP"),
    "a drive": (holding(("C:/x", b"x")), "E_ZIP"),
    "a bomb": (holding(("zeros", bytes(300 << 20))), "E_ZIP"),
    "no study": (holding(("a.txt", b"text")), "E_NOT_DICOM"),
    "a member that is its folder": (holding((".", b"x")), "E_ZIP"),
    "a member without a name": (renamed(b"\0"), "E_ZIP"),
    "two members of one name": (renamed(b"IM00001", b"IM00001"), "E_ZIP"),
    "encrypted": (encrypted, "E_ZIP"),
    "a tar": (tar("w"), "E_NOT_DICOM"),
    "a tar.gz": (tar("w:gz"), "E_NOT_DICOM"),
}
"""How each is written to a path, and the code that it ends in."""


def mutant(data, rng):
    """A damaged copy: cut, bytes taken out or put in, a length field overwritten, bits flipped."""
    data = bytearray(data)
    kind, at = rng.random(), int(rng.integers(132, len(data) - 40))
    if kind < 0.2:
        return bytes(data[: int(rng.integers(200, len(data)))])
    if kind < 0.35:
        del data[at : at + int(rng.integers(1, 40))]
    elif kind < 0.5:
        data[at:at] = rng.bytes(int(rng.integers(1, 40)))
    elif kind < 0.65:
        data[at : at + 4] = [b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0"][int(rng.integers(3))]
    else:
        for place in rng.integers(132, len(data), int(rng.integers(1, 64))):
            data[place] ^= 1 << int(rng.integers(8))
    return bytes(data)
