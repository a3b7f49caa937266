"""DICOM series and archives that no reader should accept, and random damage to files."""

import zipfile

import numpy as np
from dicoms import SAGITTAL, Grid, Made, series

__all__ = ["ARCHIVES", "FAULTS", "archive_of", "changed", "mutant", "shifted", "without_some"]


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


def archive_of(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


ARCHIVES = {
    "climbs": ([("../../etc/x", b"x")], "E_ZIP"),
    "absolute": ([("/etc/x", b"x")], "E_ZIP"),
    "a drive": ([("C:/x", b"x")], "E_ZIP"),
    "a bomb": ([("zeros", bytes(300 << 20))], "E_ZIP"),
    "no study": ([("a.txt", b"text")], "E_NOT_DICOM"),
}


def mutant(data, rng):
    """A damaged copy: cut, bytes taken out or put in, a length field overwritten, bits flipped."""
    data = bytearray(data)
    kind, at = rng.random(), int(rng.integers(132, min(3000, len(data) - 40)))
    if kind < 0.2:
        return bytes(data[: int(rng.integers(200, len(data)))])
    if kind < 0.35:
        del data[at : at + int(rng.integers(1, 40))]
    elif kind < 0.5:
        data[at:at] = rng.bytes(int(rng.integers(1, 40)))
    elif kind < 0.65:
        data[at : at + 4] = [b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0"][int(rng.integers(3))]
    else:
        for place in rng.integers(132, min(3000, len(data)), int(rng.integers(1, 64))):
            data[place] ^= 1 << int(rng.integers(8))
    return bytes(data)
