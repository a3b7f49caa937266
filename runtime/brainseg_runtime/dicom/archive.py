"""The files of a folder or of a zip archive, none of them ever unpacked to disk."""

import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from brainseg_runtime.errors import ScanRefused
from brainseg_runtime.files import open_regular

__all__ = ["MAX_FILE_BYTES", "Stored", "files_in"]

MAX_FILE_BYTES = 1 << 30
"""Of one instance; an Enhanced MR of 512 x 512 x 500 has a quarter of it."""
MAX_FILES = 100_000
MAX_ARCHIVE_BYTES = 16 << 30
MAX_RATIO = 200
"""Inflated to stored bytes of a whole archive; images with a black background reach 20."""


@dataclass(frozen=True)
class Archive:
    """A zip archive; a process that it is sent to opens it anew."""

    path: Path

    @cached_property
    def opened(self) -> zipfile.ZipFile:
        """The archive, open."""
        return zipfile.ZipFile(self.path)

    def __getstate__(self) -> dict[str, Path]:
        return {"path": self.path}


@dataclass(frozen=True)
class Stored:
    """One file, on disk or inside a zip archive."""

    name: str
    """Below the folder or inside the archive; it may name a patient, so it is for a terminal only."""
    path: Path
    """Of the file, or of the archive that holds it."""
    root: Path | None = None
    """The folder that a link must not leave."""
    archive: Archive | None = None

    @property
    def folder(self) -> Path:
        """That the file lies in, on disk or inside the archive; it too is for a terminal only."""
        return self.path.parent if self.archive is None else self.path / PurePosixPath(self.name).parent

    def read(self) -> bytes:
        """All bytes of the file.

        Raises:
            ScanRefused: ``E_INPUT_MISSING``, ``E_NOT_FILE``, ``E_TOO_BIG``, ``E_ZIP``; none tells the name.
        """
        if self.archive is not None:
            return _member(self.archive, self.name)
        try:
            with open_regular(self.path, self.root) as file:
                size = os.fstat(file.fileno()).st_size
                if size > MAX_FILE_BYTES:
                    raise _too_big("a file", size)
                return file.readall() if hasattr(file, "readall") else file.read()
        except OSError as error:
            raise _unreadable("E_INPUT_MISSING") from error
        except ScanRefused as error:
            if error.code in _UNREADABLE:
                raise _unreadable(error.code) from error
            raise


def files_in(path: Path) -> Iterator[Stored]:
    """Every file of a folder at any depth, or of a zip archive, or the one file; hidden ones do not count.

    Raises:
        ScanRefused: ``E_INPUT_MISSING``, ``E_ZIP``, ``E_TOO_BIG``.
    """
    if path.is_dir():
        yield from _in_folder(path)
    elif zipfile.is_zipfile(path):
        yield from _in_archive(path)
    elif path.exists():
        yield Stored(path.name, path)
    else:
        raise ScanRefused("E_INPUT_MISSING", f"{path} cannot be read.", "Check the path.")


def _in_folder(folder: Path) -> Iterator[Stored]:
    count = 0
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        for name in sorted(name for name in names if not _is_hidden(name)):
            count += 1
            if count > MAX_FILES:
                raise _too_big("the folder", count, "files")
            path = Path(place) / name
            yield Stored(str(path.relative_to(folder)), path, folder)


def _in_archive(path: Path) -> Iterator[Stored]:
    archive = Archive(path)
    try:
        listed = archive.opened.infolist()
    except Exception as error:  # as in _member
        raise _bad_zip(f"cannot be read ({type(error).__name__})") from error
    members = [member for member in listed if not member.filename.endswith("/")]  # is_dir() needs a name
    _check_archive(members, path.stat().st_size)
    for member in members:
        if not any(_is_hidden(part) for part in PurePosixPath(member.filename).parts):
            yield Stored(member.filename, path, None, archive)


def _check_archive(members: list[zipfile.ZipInfo], stored: int) -> None:
    """Refuse a bomb, a lock and a climber by what the directory of the archive claims."""
    total = sum(member.file_size for member in members)
    if len(members) > MAX_FILES:
        raise _bad_zip(f"holds {len(members)} files")
    if len({member.filename for member in members}) < len(members):
        raise _bad_zip("holds two files of one name")
    if total > MAX_ARCHIVE_BYTES or total > MAX_RATIO * max(stored, 1 << 16):
        raise _bad_zip(f"inflates from {stored} to {total} bytes")
    for member in members:
        place = PurePosixPath(member.filename.replace("\\", "/"))
        if not place.parts:
            raise _bad_zip("holds a file without a name")
        if place.is_absolute() or ".." in place.parts or ":" in place.parts[0]:
            raise _bad_zip("holds a file that would be unpacked outside of its folder")
        if member.flag_bits & 1:
            raise _bad_zip("is encrypted")


def _member(archive: Archive, name: str) -> bytes:
    try:
        size = archive.opened.getinfo(name).file_size
        if size > MAX_FILE_BYTES:
            raise _too_big("a file of the archive", size)
        # ZipFile gives no more than the size that was checked, and compares the checksum at its end.
        with archive.opened.open(name) as file:
            return file.read()
    except ScanRefused:
        raise
    except Exception as error:  # zipfile fails in many ways on damaged archives
        raise _bad_zip(f"is damaged ({type(error).__name__})") from error


_UNREADABLE = {
    "E_INPUT_MISSING": ("a file cannot be read.", "Check the files and their rights."),
    "E_NOT_FILE": (
        "a file is a link out of the input folder, or none that holds bytes.",
        "Copy the study into the input folder, without links.",
    ),
}


def _unreadable(code: str) -> ScanRefused:
    """In words of its own, for those of the system hold the file's name."""
    return ScanRefused(code, *_UNREADABLE[code])


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _bad_zip(what: str) -> ScanRefused:
    return ScanRefused("E_ZIP", f"the zip archive {what}.", "Export the study again, or give it as a folder.")


def _too_big(what: str, size: int, unit: str = "bytes") -> ScanRefused:
    return ScanRefused("E_TOO_BIG", f"{what} has {size} {unit}.", "Give the study of one patient.")
