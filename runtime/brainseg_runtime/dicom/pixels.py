"""The pixels of a series; compressed ones are decoded in a child process with little memory and time.

A decoder of a compressed format is native code that damaged files have crashed before: what goes wrong
in the child is a refused series here.
"""

import hashlib
import io
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian

from brainseg_runtime.dicom.series import Series, parse
from brainseg_runtime.errors import ScanRefused

__all__ = ["Pixels", "load", "require_decoder", "sha256_of"]

MAX_CHILD_BYTES = 4 << 30
MAX_SECONDS = 120
_RAW = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", str(ExplicitVRBigEndian)}


@dataclass(frozen=True, eq=False)
class Pixels:
    """The instances of a series with plain pixels, in the series' order, and what was read."""

    datasets: tuple[Dataset, ...]
    sha256: str
    """Of the SHA-256 of every file, in the order of the SOPInstanceUIDs."""


def require_decoder(series: Series) -> None:
    """Refuse a series whose pixels are stored in a way that cannot be decoded here.

    Raises:
        ScanRefused: ``E_TRANSFER_SYNTAX``.
    """
    for syntax in {instance.syntax for instance in series.instances}:
        if str(syntax) not in _RAW and not _is_decodable(syntax):
            raise ScanRefused(
                "E_TRANSFER_SYNTAX",
                f"{series.name} is stored as {syntax.name} ({syntax}), which is not decoded here.",
                "Export it as Explicit VR Little Endian, or install a decoder that pydicom knows "
                "(pip install pylibjpeg pylibjpeg-openjpeg for JPEG 2000).",
            )


def load(series: Series) -> Pixels:
    """Read the pixels of a series.

    Raises:
        ScanRefused: ``E_TRANSFER_SYNTAX``, ``E_DECODER``, ``E_DICOM_DAMAGED``, and as ``Stored.read``.
    """
    require_decoder(series)
    files = [instance.stored.read() for instance in series.instances]
    datasets = [parse(data) for data in files]
    for instance, dataset in zip(series.instances, datasets, strict=True):
        if str(dataset.get("SOPInstanceUID", "")) != instance.uid:
            raise ScanRefused(
                "E_DICOM_DAMAGED", f"a file of {series.name} changed while it was read.", "Try again."
            )
    compressed = [n for n, instance in enumerate(series.instances) if str(instance.syntax) not in _RAW]
    if compressed:
        plain = _decode(series, [files[n] for n in compressed])
        for n, pixels in zip(compressed, plain, strict=True):
            _put(series, datasets[n], pixels)
    return Pixels(tuple(datasets), _combined(files))


def sha256_of(series: Series) -> str:
    """What ``load`` gives as ``Pixels.sha256``, without parsing anything."""
    return _combined([instance.stored.read() for instance in series.instances])


def _combined(files: Sequence[bytes]) -> str:
    digest = hashlib.sha256()
    for data in files:
        digest.update(hashlib.sha256(data).digest())
    return digest.hexdigest()


def _is_decodable(syntax: UID) -> bool:
    try:
        return bool(get_decoder(syntax).is_available)
    except NotImplementedError:
        return False


def _decode(series: Series, files: Sequence[bytes]) -> list[bytes]:
    """The plain pixels of each file, little endian, from a child process."""
    sent = b"".join(len(data).to_bytes(8, "little") + data for data in files)
    command = [sys.executable, "-I", "-m", "brainseg_runtime.dicom.pixels"]
    try:
        done = subprocess.run(command, input=sent, capture_output=True, timeout=MAX_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise _failed(series, f"took more than {MAX_SECONDS} seconds") from error
    if done.returncode:
        # Its words may hold what stands in the file, so only the kind of the failure is told.
        words = done.stderr.decode(errors="replace").strip().splitlines() or [""]
        kind = words[-1].split(":")[0][:80]
        raise _failed(series, f"ended with status {done.returncode} {kind}".rstrip())
    answers = list(_messages(io.BytesIO(done.stdout)))
    if len(answers) != len(files):
        raise _failed(series, "answered too little")
    return answers


def _put(series: Series, dataset: Dataset, pixels: bytes) -> None:
    """Replace compressed pixels by plain ones, whose number the header must agree with."""
    frames = int(dataset.get("NumberOfFrames") or 1)
    expected = int(dataset.Rows) * int(dataset.Columns) * frames * int(dataset.BitsAllocated) // 8
    if len(pixels) != expected + expected % 2:
        raise _failed(series, f"gave {len(pixels)} bytes where the header speaks of {expected}")
    dataset.PixelData = pixels
    dataset["PixelData"].VR = "OW" if dataset.BitsAllocated > 8 else "OB"
    dataset["PixelData"].is_undefined_length = False
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.set_original_encoding(False, True)


def _failed(series: Series, what: str) -> ScanRefused:
    return ScanRefused(
        "E_DECODER",
        f"the decoder of {series.name} {what}.",
        "Export the series again, uncompressed.",
    )


def _messages(stream: BinaryIO) -> list[bytes]:
    found = []
    while head := stream.read(8):
        size = int.from_bytes(head, "little")
        body = stream.read(size)
        if len(body) != size:
            raise ValueError("a message ends too early")
        found.append(body)
    return found


def _child() -> None:
    """Read instances from stdin, write their pixels to stdout."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_CHILD_BYTES, MAX_CHILD_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_SECONDS, MAX_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for data in _messages(sys.stdin.buffer):
        dataset = pydicom.dcmread(io.BytesIO(data))
        dataset.decompress(generate_instance_uid=False)
        pixels = dataset.PixelData
        sys.stdout.buffer.write(len(pixels).to_bytes(8, "little") + pixels)


if __name__ == "__main__":
    _child()
