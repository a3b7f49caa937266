"""A list of SHA-256 that the files of a scan are held against: what their own formats cannot tell.

A plain .nii, a header that was changed before it was compressed, and DICOM carry no checksum. The list is
the one that ``sha256sum`` writes; its paths start at its own folder.
"""

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brainseg_runtime.batch import Findings, Readable
from brainseg_runtime.errors import BrainsegError, ScanRefused, UsageRefused
from brainseg_runtime.files import open_regular
from brainseg_runtime.outputs import Attachment, AttachmentKind
from brainseg_runtime.volume import Outline, Segmentation, Volume

__all__ = ["Held", "Listed", "hold", "load_checksums"]

LINE = re.compile(r"([0-9a-f]{64}) [ *](\S.*)")


@dataclass(frozen=True)
class Listed:
    """A scan that is read only if all of its files are on a list and as the list says."""

    scan: Readable
    sums: Mapping[Path, str]

    @property
    def id(self) -> str:
        """The scan's."""
        return self.scan.id

    @property
    def paths(self) -> Collection[Path]:
        """The scan's."""
        return self.scan.paths

    def outline(self) -> Outline:
        """The scan's."""
        return self.scan.outline()

    def read(self) -> Volume:
        """As the scan, between two looks at its files: what was read is what was listed.

        Raises:
            ScanRefused: ``E_CHECKSUM``.
        """
        self._require()
        volume = self.scan.read()
        self._require()
        return volume

    def identity(self) -> dict[str, Any]:
        """As the scan; ``E_CHECKSUM`` too, so that a result that stands does not hide a changed file."""
        self._require()
        return self.scan.identity()

    def attachments(self, kinds: Collection[AttachmentKind], segmentation: Segmentation) -> list[Attachment]:
        """As the scan."""
        return self.scan.attachments(kinds, segmentation)

    def _require(self) -> None:
        for path in self.scan.paths:
            listed = self.sums.get(path.resolve())
            if listed is None:
                raise _refused(self.id, path, "is not on the list of checksums")
            with open_regular(path) as file:
                if hashlib.sha256(file.read()).hexdigest() != listed:
                    raise _refused(self.id, path, "differs from the list of checksums")


@dataclass(frozen=True)
class Held:
    """The scans of a run, each held against a list."""

    scans: tuple[Listed, ...]
    refused: Mapping[str, BrainsegError]


def hold(found: Findings, sums: Mapping[Path, str]) -> Held:
    """Found scans, to be read only as a list says; those that were refused before stay so."""
    return Held(tuple(Listed(scan, sums) for scan in found.scans), found.refused)


def load_checksums(path: Path) -> Mapping[Path, str]:
    """The files of a list as ``sha256sum`` writes it, and their SHA-256.

    Raises:
        UsageRefused: ``E_USAGE`` for a list that cannot be read, is empty, or holds anything else.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line]
    except (OSError, UnicodeDecodeError) as error:
        raise _no_list(path, str(error)) from error
    matches = [LINE.fullmatch(line) for line in lines]
    if not lines or None in matches:
        wrong = next((n for n, match in enumerate(matches, 1) if match is None), 1)
        raise _no_list(path, f"line {wrong} is not '<sha256>  <file>'")
    folder = path.resolve().parent
    return {(folder / match[2]).resolve(): match[1] for match in matches if match}


def _no_list(path: Path, why: str) -> UsageRefused:
    return UsageRefused(
        "E_USAGE",
        f"{path} is no list of checksums: {why}.",
        "Make it where the files are right: sha256sum */* > SHA256SUMS.",
    )


def _refused(scan: str, path: Path, what: str) -> ScanRefused:
    return ScanRefused(
        "E_CHECKSUM", f"scan {scan}: {path.name} {what}.", "Copy the file again from its source."
    )
