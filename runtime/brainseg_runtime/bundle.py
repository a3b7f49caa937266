"""A model as a folder that knows its own inputs, lists its own files and proves its own parity."""

import hashlib
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from brainseg_runtime import graph, signature
from brainseg_runtime.certificate import Certificate
from brainseg_runtime.errors import BundleInvalid, OutputUnwritable, ScanRefused
from brainseg_runtime.files import open_regular, write_atomically
from brainseg_runtime.spec import FORMAT, ModelSpec

__all__ = ["GRAPHS", "SIGNATURE", "Bundle", "Golden", "Precision", "sign_bundle", "write_bundle"]

Precision = Literal["fp32", "fp16", "bf16"]

GRAPHS: Mapping[Precision, str] = {"fp32": "model.onnx", "fp16": "model.fp16.onnx", "bf16": "model.onnx"}
"""The graph of each precision; into bfloat16 an engine turns the FP32 graph by itself."""

MANIFEST = "manifest.json"
DIGEST = "manifest.sha256"
SIGNATURE = "manifest.sig"
"""Of the manifest; the one file that a bundle may have or not."""

MAX_FILE_BYTES = 2 << 30
MAX_GOLDEN_BYTES = 256 << 20
"""Of the golden tile and its logits, inflated; 64^3 voxels of 4 modalities and 3 regions in FP16 are 4 MB."""


@dataclass(frozen=True, eq=False)
class Golden:
    """A tile and what the Keras model makes of it: the known answer of the self-test."""

    tile: NDArray[np.float32]
    """(i, j, k, C), prepared intensities."""
    logits: NDArray[np.float32]
    """(i, j, k, R), stored in FP16."""

    def to_npz(self) -> bytes:
        """The golden tile as the bytes of ``selftest.npz``."""
        stream = io.BytesIO()
        np.savez_compressed(stream, tile=self.tile.astype(np.float16), logits=self.logits.astype(np.float16))
        return stream.getvalue()

    @classmethod
    def from_npz(cls, data: bytes) -> Self:
        """Read ``selftest.npz``; no pickle is ever loaded.

        Raises:
            BundleInvalid: ``E_BUNDLE_FORMAT`` for anything but two arrays (i, j, k, ...) of finite numbers.
        """
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                inflated = sum(member.file_size for member in archive.infolist())
            if inflated > MAX_GOLDEN_BYTES:
                raise ValueError(f"it inflates to {inflated} bytes")
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                tile, logits = (arrays[name].astype(np.float32) for name in ("tile", "logits"))
            if tile.ndim != 4 or tile.shape[:3] != logits.shape[:3] or not np.isfinite(tile).all():
                raise ValueError(f"a tile {tile.shape} with logits {logits.shape}")
        # A damaged zip or array fails in many ways.
        except Exception as error:
            raise BundleInvalid(
                "E_BUNDLE_FORMAT", f"selftest.npz is malformed: {error}.", "Export the model again."
            ) from error
        return cls(tile, logits)


@dataclass(frozen=True, eq=False)
class Bundle:
    """A bundle whose every byte has been held against its manifest."""

    folder: Path
    manifest: Mapping[str, Any]
    spec: ModelSpec
    certificate: Certificate
    sha256: str
    """Of the manifest, and through it of every file: the model's identity."""

    @classmethod
    def open(cls, folder: Path | str, require_signature: Path | None = None) -> Self:
        """Open a bundle and check all of it, also who signed it where public keys are given (PEM).

        Raises:
            BundleInvalid: ``E_NOT_BUNDLE`` without a manifest, ``E_SIGNATURE`` where none of the keys
                signed it, ``E_BUNDLE_DAMAGED`` where a byte of
                any file differs or a file is missing or not listed, ``E_BUNDLE_FORMAT`` for a newer
                format, ``E_SPEC`` for a contradictory specification.
            UsageRefused: ``E_USAGE`` for a file without such keys.
            EngineUnavailable: ``E_EXTRA_MISSING`` where keys are given and cryptography is not installed.
        """
        folder = Path(folder)
        data = _file(folder, MANIFEST)
        if require_signature is not None:
            # Before anything that the manifest says is believed.
            signed = _file(folder, SIGNATURE) if (folder / SIGNATURE).exists() else None
            signature.check(data, signed, require_signature)
        sha256 = hashlib.sha256(data).hexdigest()
        if _file(folder, DIGEST) != _digest_line(sha256):
            raise _damaged(folder, f"{MANIFEST} does not match {DIGEST}")
        manifest = _manifest(data)
        listed = {MANIFEST, DIGEST, *manifest["files"]}
        present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
        present.discard(SIGNATURE)
        if present != listed:
            raise _damaged(folder, f"files missing or not listed: {sorted(present ^ listed)}")
        for name in manifest["files"]:
            _checked(folder, name, manifest)
        spec = ModelSpec.from_json(json.dumps(manifest["spec"]))
        certificate = Certificate.from_json(_checked(folder, "certificate.json", manifest))
        return cls(folder, manifest, spec, certificate, sha256)

    def read(self, name: str) -> bytes:
        """The bytes of a listed file, checked as they are read: what was hashed is what is used."""
        return _checked(self.folder, name, self.manifest)

    def graph(self, precision: Precision) -> bytes:
        """The ONNX graph of a precision, holding nothing but a network.

        Raises:
            BundleInvalid: as ``graph.check``.
        """
        data = self.read(GRAPHS[precision])
        graph.check(data)
        return data

    def graph_sha256(self, precision: Precision) -> str:
        """The digest of a precision's graph."""
        return str(self.manifest["files"][GRAPHS[precision]]["sha256"])

    def golden(self) -> Golden:
        """The known answer of the self-test."""
        return Golden.from_npz(self.read("selftest.npz"))


def write_bundle(
    folder: Path | str,
    spec: ModelSpec,
    files: Mapping[str, bytes],
    *,
    provenance: Mapping[str, object],
    licence: str,
    intended_use: str,
) -> Bundle:
    """Write a bundle and open it; one that stood there before is replaced only when the new one is whole.

    Raises:
        OutputUnwritable: ``E_OUTPUT`` where the folder cannot be written or holds something else.
    """
    folder = Path(folder)
    manifest = {
        "format": FORMAT,
        "name": spec.name,
        "spec": json.loads(spec.to_json()),
        "files": {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
            for name, data in sorted(files.items())
        },
        "provenance": dict(provenance),
        "licence": licence,
        "intended_use": intended_use,
    }
    text = (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()
    everything = {
        **files,
        MANIFEST: text,
        DIGEST: _digest_line(hashlib.sha256(text).hexdigest()),
    }
    if folder.exists() and any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise OutputUnwritable(
            "E_OUTPUT",
            f"{folder} exists and is not a bundle, so it is not replaced.",
            "Name another folder, or remove this one.",
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as staging:
            new, old = Path(staging, "new"), Path(staging, "old")
            new.mkdir()
            for name, data in everything.items():
                (new / name).write_bytes(data)
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
    except OSError as error:
        raise OutputUnwritable(
            "E_OUTPUT",
            f"the bundle {folder} cannot be written: {error}.",
            "Check space and rights.",
        ) from error
    return Bundle.open(folder)


def sign_bundle(folder: Path | str, key: Path) -> None:
    """Sign a bundle that is whole with a private key (PEM), in place of a signature that it had.

    Raises:
        BundleInvalid: as ``Bundle.open``.
        UsageRefused: ``E_USAGE`` for a file that is no such key.
        OutputUnwritable: ``E_OUTPUT``.
    """
    bundle = Bundle.open(folder)
    data = _file(bundle.folder, MANIFEST)
    if hashlib.sha256(data).hexdigest() != bundle.sha256:
        raise _damaged(bundle.folder, f"{MANIFEST} changed while it was read")
    write_atomically(bundle.folder / SIGNATURE, signature.sign(data, key))


def _manifest(data: bytes) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads(data)
        version = manifest["format"]
        named = {"spec", "files", "provenance", "licence", "intended_use"} <= set(manifest)
        for name, entry in manifest["files"].items():
            if not (isinstance(entry["sha256"], str) and isinstance(entry["size"], int)):
                raise ValueError(f"the entry of {name}")
    # RecursionError: brackets within brackets without end.
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BundleInvalid(
            "E_BUNDLE_FORMAT", f"{MANIFEST} is malformed: {error}.", "Export the model again."
        ) from error
    if version != FORMAT or not named:
        raise BundleInvalid(
            "E_BUNDLE_FORMAT",
            f"{MANIFEST} has format {version}, this runtime reads {FORMAT}.",
            "Update brainseg-runtime, or export the model again.",
        )
    return manifest


def _checked(folder: Path, name: str, manifest: Mapping[str, Any]) -> bytes:
    if name not in manifest["files"]:
        raise _damaged(folder, f"{name} is not in the bundle")
    data = _file(folder, name)
    if hashlib.sha256(data).hexdigest() != manifest["files"][name]["sha256"]:
        raise _damaged(folder, f"{name} differs from its sha256 in {MANIFEST}")
    return data


def _file(folder: Path, name: str) -> bytes:
    path = folder / name
    if Path(name).name != name or path.is_symlink() or not path.is_file():
        if name == MANIFEST:
            raise BundleInvalid(
                "E_NOT_BUNDLE",
                f"{folder} has no {MANIFEST}.",
                "Name a bundle's folder, as made by brainseg-export bundle.",
            )
        raise _damaged(folder, f"{name} is missing or is not a plain file")
    try:
        # Asked again of what was opened: a name may come to mean a fifo, a device or a link.
        with open_regular(path, folder) as file:
            if (size := os.fstat(file.fileno()).st_size) > MAX_FILE_BYTES:
                raise _damaged(folder, f"{name} has {size} bytes")
            return file.read()
    except (ScanRefused, OSError) as error:
        raise _damaged(folder, f"{name} cannot be read: {error}") from error


def _digest_line(sha256: str) -> bytes:
    return f"{sha256}  {MANIFEST}\n".encode()


def _damaged(folder: Path, what: str) -> BundleInvalid:
    return BundleInvalid(
        "E_BUNDLE_DAMAGED",
        f"bundle {folder}: {what}.",
        "Do not use it; fetch or export the bundle again.",
    )
