"""Read what others wrote without trusting it, and write so that no half file is ever left."""

import contextlib
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from isal import isal_zlib

from brainseg_runtime.errors import OutputUnwritable, ScanRefused

__all__ = ["Content", "becoming", "open_regular", "remove", "trailing", "truncated", "write_atomically"]

_CHUNK = 1 << 18
_PIECE = 1 << 20
"""Bytes read, and bytes inflated, at a time."""
_GZIP_MAGIC = b"\x1f\x8b"
_InflateError: type[Exception] = isal_zlib.IsalError  # type: ignore[assignment]  # its stub is wrong


# Not every system has all of these: a fifo must not block, Windows must not translate line ends.
_READ = os.O_RDONLY
for _name in ("O_NONBLOCK", "O_NOFOLLOW", "O_CLOEXEC", "O_BINARY"):
    _READ |= getattr(os, _name, 0)


def open_regular(path: Path, root: Path | None = None) -> BinaryIO:
    """Open a regular file for unbuffered reading.

    Links are followed as long as they end inside ``root``; without a root they may end anywhere.

    Raises:
        ScanRefused: ``E_INPUT_MISSING`` if the file is absent or unreadable, ``E_NOT_FILE`` if it
            is a folder, a fifo or a device, or a link that leaves ``root``.
    """
    try:
        real = path.resolve(strict=True)
        is_linked = real != Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links
        if root is not None and is_linked and not real.is_relative_to(root.resolve()):
            raise ScanRefused(
                "E_NOT_FILE",
                f"{path.name} is a link to {real}, outside the input folder {root}.",
                "Copy the file into the input folder, or name the folder that holds it as input.",
            )
        if not stat.S_ISREG(real.stat().st_mode):
            raise _not_file(path)
        descriptor = os.open(real, _READ)
        # Asked again of what was opened: the name may have come to mean something else.
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise _not_file(path)
        return os.fdopen(descriptor, "rb", buffering=0)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, up to Python 3.12
        raise ScanRefused(
            "E_INPUT_MISSING", f"{path} cannot be read: {error}.", "Check the path and its rights."
        ) from error


class Content:
    """What a file holds, inflated if it is gzip, and never more of it in memory than was asked for."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.name = name
        self._file = file
        self._digest = hashlib.sha256()
        self._pending = self._next_chunk()
        self._inflater = isal_zlib.decompressobj(wbits=31)
        self.compressed = self._pending.startswith(_GZIP_MAGIC)

    @property
    def sha256(self) -> str:
        """Of the bytes on disk that were read so far."""
        return self._digest.hexdigest()

    def read_into(self, view: memoryview) -> int:
        """Fill ``view`` with bytes and return their number; fewer than its size only at the end.

        The end of gzip content is found only behind a checksum and a length that match.

        Raises:
            ScanRefused: ``E_GZIP``, ``E_TRUNCATED``, ``E_TRAILING``, ``E_INPUT_MISSING``.
        """
        filled = 0
        while filled < len(view):
            limit = min(len(view) - filled, _PIECE)
            piece = self._inflate(limit) if self.compressed else self._copy(limit)
            if not piece:
                break
            view[filled : filled + len(piece)] = piece
            filled += len(piece)
        return filled

    def _copy(self, limit: int) -> bytes:
        self._pending = self._pending or self._next_chunk()
        piece, self._pending = self._pending[:limit], self._pending[limit:]
        return piece

    def _inflate(self, limit: int) -> bytes:
        while not self._inflater.eof or self._open_next_member():
            try:
                piece = self._inflater.decompress(self._pending, limit)
            except _InflateError as error:
                raise ScanRefused(
                    "E_GZIP", f"{self.name} is damaged: {error}.", "Copy it again from its source."
                ) from error
            self._pending = self._inflater.unconsumed_tail
            if piece:
                return piece
            if not self._inflater.eof and not self._pending:
                self._pending = self._next_chunk()
                if not self._pending:
                    raise truncated(self.name)
        return b""

    def _open_next_member(self) -> bool:
        """Go on to the gzip stream that follows the finished one; False at the end of the file."""
        rest = self._inflater.unused_data
        if len(rest) < len(_GZIP_MAGIC):
            rest += self._next_chunk()
        if not rest:
            return False
        if not rest.startswith(_GZIP_MAGIC):
            raise trailing(self.name)
        self._inflater = isal_zlib.decompressobj(wbits=31)
        self._pending = rest
        return True

    def _next_chunk(self) -> bytes:
        try:
            chunk = self._file.read(_CHUNK)
        except OSError as error:
            raise ScanRefused(
                "E_INPUT_MISSING", f"{self.name} cannot be read: {error}.", "Check the disk."
            ) from error
        self._digest.update(chunk)
        return chunk


def write_atomically(path: Path, content: bytes) -> str:
    """Write a whole file under a temporary name beside ``path``, rename it into place, return its SHA-256.

    Missing parent folders are made. Whoever reads ``path`` sees the old content or the new one.

    Raises:
        OutputUnwritable: ``E_OUTPUT`` if the system refuses any step; nothing is left behind.
    """
    with becoming(path) as partial, partial.open("xb") as file:
        file.write(content)
    # Of what was meant, not of what is there by now: another run may write into the same folder.
    return hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def becoming(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path``; the file that is written under it becomes ``path`` at the end.

    Raises:
        OutputUnwritable: as ``write_atomically``.
    """
    partial = path.with_name(f".brainseg-{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise
        _sync_folder(path.parent)
    except OSError as error:
        if isinstance(error, OutputUnwritable):
            raise
        raise OutputUnwritable(
            "E_OUTPUT", f"{path} cannot be written: {error}.", "Choose another output folder."
        ) from error


def remove(path: Path) -> None:
    """Remove a file where there is one.

    Raises:
        OutputUnwritable: ``E_OUTPUT`` if the system refuses.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputUnwritable(
            "E_OUTPUT", f"{path} cannot be removed: {error}.", "Choose another output folder."
        ) from error


def _sync_folder(folder: Path) -> None:
    """Make a rename outlive a power cut, where the system can open a folder at all."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _not_file(path: Path) -> ScanRefused:
    return ScanRefused("E_NOT_FILE", f"{path.name} is not a regular file.", "Give a .nii or .nii.gz file.")


def truncated(name: str) -> ScanRefused:
    """The refusal of a file that ends too early."""
    return ScanRefused("E_TRUNCATED", f"{name} ends before its data do.", "Copy it again from its source.")


def trailing(name: str) -> ScanRefused:
    """The refusal of a file that does not end with its data."""
    return ScanRefused(
        "E_TRAILING",
        f"{name} goes on after the end of its data.",
        "Export it again from its source.",
    )
