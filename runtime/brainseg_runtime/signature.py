"""Who vouches for a bundle: an Ed25519 signature over its manifest, held against the operator's keys.

The manifest lists the digest of every other file, so its signature covers all of them. A key is never
taken from a bundle. The formats are those of openssl, which can check a signature on its own.
"""

import base64
import binascii
import os
from pathlib import Path
from typing import TYPE_CHECKING

from brainseg_runtime.errors import BundleInvalid, OutputUnwritable, UsageRefused
from brainseg_runtime.extras import require

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

__all__ = ["check", "make_keys", "sign"]

END = b"-----END PUBLIC KEY-----"


def check(data: bytes, signature: bytes | None, keys: Path) -> None:
    """Refuse bytes that none of the public keys in a PEM file has signed.

    Raises:
        BundleInvalid: ``E_SIGNATURE``.
        UsageRefused: ``E_USAGE`` for a file that holds no Ed25519 public key.
        EngineUnavailable: ``E_EXTRA_MISSING`` without cryptography.
    """
    _require()
    from cryptography.exceptions import InvalidSignature

    trusted = _public_keys(keys)
    if signature is None:
        raise _refused("it is not signed")
    try:
        raw = base64.b64decode(signature.removesuffix(b"\n"), validate=True)
    except binascii.Error as error:
        raise _refused("its signature is not base64") from error
    # The last digit has bits that decoding ignores: another spelling of a signature is a damaged one.
    if signature.removesuffix(b"\n") != base64.b64encode(raw):
        raise _refused("its signature is not spelt as base64 is")
    for key in trusted:
        try:
            key.verify(raw, data)
        except InvalidSignature:
            continue
        return
    raise _refused(f"none of the {len(trusted)} keys in {keys} signed it as it is")


def sign(data: bytes, key: Path) -> bytes:
    """The signature of some bytes by the private key in a PEM file, in base64 and a line.

    Raises:
        UsageRefused: ``E_USAGE`` for a file that is not such a key.
        EngineUnavailable: ``E_EXTRA_MISSING`` without cryptography.
    """
    _require()
    return base64.b64encode(_private_key(key).sign(data)) + b"\n"


def make_keys(private: Path, public: Path) -> None:
    """Write a new pair of keys as PEM, the private one for its owner alone; neither replaces a file.

    Raises:
        OutputUnwritable: ``E_OUTPUT`` where either is there already or cannot be written.
        EngineUnavailable: ``E_EXTRA_MISSING`` without cryptography.
    """
    _require()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    shown = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    for path, content, mode in ((private, secret, 0o600), (public, shown, 0o644)):
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
        except OSError as error:
            raise OutputUnwritable(
                "E_OUTPUT",
                f"{path} cannot be written: {error.strerror}.",
                "Name a file that is not there yet.",
            ) from error


def _public_keys(path: Path) -> "list[Ed25519PublicKey]":
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        blocks = [block + END for block in path.read_bytes().split(END)[:-1]]
        keys = [load_pem_public_key(block) for block in blocks]
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise _no_key(path, str(error)) from error
    if not keys or not all(isinstance(key, Ed25519PublicKey) for key in keys):
        raise _no_key(path, "it has to hold Ed25519 public keys and no others")
    return [key for key in keys if isinstance(key, Ed25519PublicKey)]


def _private_key(path: Path) -> "Ed25519PrivateKey":
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:  # TypeError: a locked key
        raise _no_key(path, str(error)) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _no_key(path, "it has to be an Ed25519 private key")
    return key


def _require() -> None:
    require("signatures", ("cryptography",), "brainseg-runtime[trust]")


def _no_key(path: Path, why: str) -> UsageRefused:
    return UsageRefused(
        "E_USAGE",
        f"{path} cannot be used as a key: {why}.",
        "Give a PEM file as brainseg-export keygen writes.",
    )


def _refused(what: str) -> BundleInvalid:
    return BundleInvalid(
        "E_SIGNATURE",
        f"the bundle cannot be trusted: {what}.",
        "Get it anew from whoever signs your bundles.",
    )
