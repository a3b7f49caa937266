"""What can go wrong, under stable codes, and which exit status each kind of failure ends a run with."""

from collections.abc import Mapping
from typing import ClassVar, Self

__all__ = [
    "CODES",
    "BrainsegError",
    "BudgetExceeded",
    "BundleInvalid",
    "EngineUnavailable",
    "OutputUnwritable",
    "ScanRefused",
    "UsageRefused",
]

CODES: Mapping[str, str] = {
    # finding the scans
    "E_INPUT_MISSING": "an input path does not exist or cannot be read",
    "E_NO_SCANS": "no file under the input has a name of a known scan layout",
    "E_MODALITY_MISSING": "a scan lacks a modality that the model needs",
    "E_MODALITY_DOUBLED": "two files of one scan claim the same modality",
    "E_DATASET_JSON": "a dataset.json is absent where the layout needs it, or does not say what is needed",
    "E_SCAN_DOUBLED": "two scans of one run would be written under the same name",
    # the bytes of a file
    "E_NOT_FILE": "not a regular file, or a link that leaves the input folder",
    "E_EMPTY": "the file has no bytes",
    "E_TOO_BIG": "the file, or what it inflates to, is beyond what its header or the limits allow",
    "E_GZIP": "the gzip stream is damaged or its checksum does not match",
    "E_TRUNCATED": "the file ends before its data do",
    "E_TRAILING": "bytes follow the end of the data",
    "E_NOT_NIFTI": "the header is not that of a single-file NIfTI-1 or NIfTI-2",
    "E_NDIM": "the image is not three-dimensional",
    "E_DIMS": "a dimension is outside the accepted range",
    "E_DTYPE": "the voxel type is not a supported real number, or contradicts the header",
    "E_OFFSET": "the data offset is not plausible",
    "E_SCALE": "the intensity scaling is not finite or not plausible",
    "E_NO_AFFINE": "neither qform nor sform places the image in the patient",
    "E_AFFINE": "the affine is not finite, or its quaternion cannot be decoded",
    "E_SPACING": "the voxel size is not plausible for a head scan",
    "E_SHEAR": "the voxel axes are not perpendicular",
    "E_FORMS_DISAGREE": "qform and sform place the same voxels at different positions",
    "E_NONFINITE": "voxels are NaN or infinite",
    "E_CONSTANT": "all voxels have the same value",
    "E_NOT_MR": "the image is a CT or of another kind, not an MRI",
    # DICOM studies
    "E_INPUT_MIXED": "an input holds both NIfTI and DICOM files, or neither",
    "E_ZIP": "a zip archive is damaged, encrypted, or beyond the limits of size and number",
    "E_NOT_DICOM": "nothing in the input is a DICOM instance that can be read",
    "E_DICOM_DAMAGED": "a DICOM instance is damaged or contradicts itself",
    "E_DICOM_DOUBLED": "two different instances have one identifier",
    "E_TRANSFER_SYNTAX": "the pixels are compressed in a way that is not decoded here",
    "E_DECODER": "the decoder of compressed pixels failed, or took more memory or time than it was given",
    "E_SERIES_IRREGULAR": "the slices of a series are no regular stack: some are missing, doubled or sheared",
    "E_SERIES_AMBIGUOUS": "several series of a study could be one modality, and no rule prefers one",
    "E_SERIES_CONTRADICTORY": "what a series was measured with and what it is called disagree",
    "E_PATIENTS_MIXED": "the series of one study name different patients",
    "E_FRAME_OF_REFERENCE": "the series do not share a frame of reference",
    "E_RULES": "the rules by which series are chosen cannot be read, or do not speak of a modality",
    "E_READBACK": "what was written does not read back as what was meant",
    "E_EXTRA_MISSING": "an optional part of brainseg is not installed",
    # a scan as a whole
    "E_CHECKSUM": "a file is not on the list of checksums, or differs from it or from the record",
    "E_GEOMETRY_MISMATCH": "the modalities of a scan do not lie on one grid",
    "E_REGISTRATION": "the modalities of a scan cannot be registered to each other",
    "E_NO_BRAIN": "nothing stands out from the background",
    "E_CHANNELS": "the volume's channels are not those of the model",
    "E_LABELS": "a truth image holds values that are no labels of the model",
    # the run
    "E_USAGE": "the arguments contradict each other",
    "E_ENGINE_MISSING": "the engine is not installed",
    "E_ENGINE_DEVICE": "the engine does not run on the device that was asked for",
    "E_ENGINE_FAILED": "the engine failed while it computed",
    "E_ENGINE_DIED": "the process that computes on one of several devices ended before its work was done",
    "E_PLAN": "TensorRT does not build the plan, or what it built is not what was asked for",
    "E_PLAN_CACHE": "others could write into the folder of TensorRT plans",
    "E_NOT_BUNDLE": "the folder is not a bundle",
    "E_BUNDLE_FORMAT": "the bundle's format is newer than this runtime, or its description is malformed",
    "E_BUNDLE_DAMAGED": "a file of the bundle differs from its manifest, is missing, or is not listed",
    "E_SIGNATURE": "the bundle is not signed by a key that is trusted here, or its signature does not fit",
    "E_GRAPH_FORM": "the bytes of a graph are no whole ONNX model, or contradict themselves",
    "E_GRAPH_OPERATOR": "a graph holds an operator, a function or a version that is not allowed",
    "E_GRAPH_DATA": "a graph refers to data outside of itself",
    "E_UNCERTIFIED": "the bundle's certificate does not cover this engine and precision",
    "E_SELFTEST": "the engine does not reproduce the bundle's golden tile on this machine",
    "E_SPEC": "a model specification contradicts itself or the model",
    "E_OUTPUT": "the output cannot be written",
    "E_MEMORY": "the work does not fit in memory",
    "E_TIMEOUT": "a scan took longer than it was given",
    "E_RUN_DIFFERS": "a run that was repeated was made by another model, or gives another mask",
    "E_UNEXPECTED": "an error that brainseg does not know; please report it",
    # training
    "E_TRUTH_MISSING": "a training scan has no label image",
    "E_TOO_FEW_SCANS": "there are too few scans to train on and to hold out",
    "E_RUN": "a run folder is incomplete, or belongs to another configuration",
    "E_NETWORK": "the network cannot be built as asked",
    "E_SLICE": "a .mat file is no slice of figshare 1512427",
    "E_OUTLINE": "the mask and the polygon of a slice show different tumours",
    "E_FOLDS": "cross-validation folds do not fit the scans, or part a patient",
    "E_STORE": "a file is no whole dataset store, or one of another form",
    # export
    "E_LAYER": "a layer of the Keras model has no counterpart in the clean graph",
    "E_MODEL": "the Keras model cannot be loaded or is not of the expected form",
    "E_PARITY": "two forms of the same model disagree",
}
"""Every code that brainseg can end a scan or a run with, and what it means. Codes are never reused."""


class BrainsegError(Exception):
    """A failure with a stable code, what was received, and what to do about it."""

    exit_status: ClassVar[int] = 1

    def __init__(self, code: str, received: str, remedy: str) -> None:
        if code not in CODES:
            raise KeyError(f"unknown error code {code}")
        self.code = code
        self.received = received
        self.remedy = remedy
        super().__init__(f"{code}: {received} {remedy}".rstrip())

    def __reduce__(self) -> tuple[type[Self], tuple[str, str, str]]:
        """How it goes from one process to another: an exception would travel as its one line."""
        return type(self), (self.code, self.received, self.remedy)


class UsageRefused(BrainsegError, ValueError):
    """The command line or the call contradicts itself."""

    exit_status = 2


class ScanRefused(BrainsegError, ValueError):
    """One scan cannot be processed without risking a wrong answer; other scans can go on."""

    exit_status = 3


class EngineUnavailable(BrainsegError, RuntimeError):
    """The engine or device that was demanded does not run here."""

    exit_status = 5


class BundleInvalid(BrainsegError, ValueError):
    """The model is damaged, unverified, or does not compute what it was certified to compute."""

    exit_status = 6


class OutputUnwritable(BrainsegError, OSError):
    """A result cannot be written."""

    exit_status = 7


class BudgetExceeded(BrainsegError, MemoryError):
    """The work does not fit in the memory or the time that it was given."""

    exit_status = 8
