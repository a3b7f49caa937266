"""Scans through one segmenter, one read and one written beside the one computed; a bad one stops no other."""

import resource
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from brainseg_runtime.attachments import attachments_of
from brainseg_runtime.errors import BrainsegError, BudgetExceeded, OutputUnwritable
from brainseg_runtime.fingerprint import MIXED_UP
from brainseg_runtime.heads import whole_head
from brainseg_runtime.memory import Beside, InHand, most_fetched, told_of_next
from brainseg_runtime.outputs import (
    DICOM_KINDS,
    Attachment,
    AttachmentKind,
    LabelScheme,
    Written,
    is_done,
    result_path,
    standing,
    write,
    write_table,
)
from brainseg_runtime.report import write_index
from brainseg_runtime.segmenter import Computed, Ready, Segmenter
from brainseg_runtime.volume import Outline, Segmentation, Volume

__all__ = [
    "Done",
    "Failed",
    "Findings",
    "Outcome",
    "Readable",
    "Skipped",
    "ahead_of",
    "concluded",
    "exit_status",
    "run",
    "segment_each",
    "unexpected",
]


@dataclass(frozen=True)
class Done:
    """A scan whose results were written now."""

    scan: str
    written: Written


@dataclass(frozen=True)
class Skipped:
    """A scan whose results already stood, made from the same inputs by the same model and options."""

    scan: str


@dataclass(frozen=True)
class Failed:
    """A scan without a result, and why."""

    scan: str
    error: BrainsegError


class Readable(Protocol):
    """A scan, wherever it comes from."""

    @property
    def id(self) -> str:
        """What its results are called; it says nothing of the patient."""

    @property
    def paths(self) -> Collection[Path]:
        """Every file that is read, or the archive that holds it."""

    def outline(self) -> Outline:
        """What is known of its size before any voxel is read, or raise ``ScanRefused``."""

    def read(self) -> Volume:
        """Read it, or raise ``ScanRefused``."""

    def identity(self) -> dict[str, Any]:
        """What a record must say that speaks of the same bytes, read the same way."""

    def attachments(self, kinds: Collection[AttachmentKind], segmentation: Segmentation) -> list[Attachment]:
        """Those of the kinds that only this origin of scans can make."""


class Findings(Protocol):
    """The scans of a run."""

    @property
    def scans(self) -> Sequence[Readable]:
        """Those that are complete."""

    @property
    def refused(self) -> Mapping[str, BrainsegError]:
        """Scan id -> why it is not among ``scans``."""


Outcome = Done | Skipped | Failed
Fetched = Ready | Skipped
T = TypeVar("T")


def run(
    segmenter: Segmenter,
    found: Findings,
    folder: Path,
    *,
    label_scheme: LabelScheme = "brats2023",
    overwrite: bool = False,
    attachments: Collection[AttachmentKind] = (),
    warn: Callable[[str], None] = warnings.warn,
) -> Iterator[Outcome]:
    """Segment every scan into a folder, one outcome a scan, and write the table of volumes at the end.

    With the attachment ``report`` an index of all pages is written too. Outcomes come in the order of the
    scans. ``warn`` is told what is amiss with the folder rather than with a scan.

    Raises:
        OutputUnwritable: ``E_OUTPUT``; it stops the run, since no other scan could be written either.
    """
    outcomes = segment_each(
        segmenter,
        found.scans,
        folder=folder,
        label_scheme=label_scheme,
        overwrite=overwrite,
        attachments=attachments,
    )
    return concluded(found, outcomes, folder, attachments, warn)


def concluded(
    found: Findings,
    outcomes: Generator[Outcome, None, None],
    folder: Path,
    attachments: Collection[AttachmentKind],
    warn: Callable[[str], None],
) -> Iterator[Outcome]:
    """The outcomes of a run, those that were refused first; then its table, and its index if asked for.

    Both tell of every result in the folder, but for scans that failed now: an earlier result of theirs is
    of other files or another model.
    """
    yield from (Failed(scan, error) for scan, error in found.refused.items())
    failed = dict(found.refused)
    try:
        with closing(outcomes):
            for outcome in outcomes:
                if isinstance(outcome, Failed):
                    failed[outcome.scan] = outcome.error
                yield outcome
    finally:
        records, others = standing(folder, without=failed)
        write_table(folder, records)
        if "report" in attachments:
            write_index(folder, records, failed)
        for path in others:
            warn(f"{path.name} is no record of a result, so volumes.csv has no row for it.")


def segment_each(
    segmenter: Segmenter,
    scans: Iterable[Readable],
    *,
    folder: Path,
    label_scheme: LabelScheme,
    overwrite: bool,
    attachments: Collection[AttachmentKind],
    engines: Collection[Mapping[str, Any]] = (),
) -> Generator[Outcome, None, None]:
    """Segment scans as they come, one outcome a scan, in their order.

    Three scans are in hand: while one is computed, the next is read and prepared and the last is labelled
    and written. Where that takes more memory than there is, one is: the next is read when the last is
    written, and its record says so. The next is asked for just before one is computed.
    Results of the same model by other ``engines``, as their records name them, stand too.

    Raises:
        OutputUnwritable: ``E_OUTPUT``.
    """
    told = segmenter.record()
    options = {**told["options"], "label_scheme": label_scheme}
    others = [engine for engine in engines if engine != told["engine"]]
    accepted = [{**told, "options": options, "engine": engine} for engine in (told["engine"], *others)]

    hand = InHand(segmenter.answering)

    def fetch(scan: Readable, kept: int) -> Fetched:
        if not overwrite and _stands(scan, folder, accepted, attachments):
            return Skipped(scan.id)
        started = time.perf_counter()
        outline = scan.outline()
        segmenter.require_room(scan.id, outline, kept)
        volume = scan.read()
        read = {"read": round(time.perf_counter() - started, 4)}
        ready = segmenter.ready(
            volume,
            probabilities="probabilities" in attachments,
            beside=Beside(outline.beside, bool(set(attachments) - {"probabilities"}), kept),
        )
        return replace(ready, seconds={**read, **ready.seconds})

    def begin(scan: Readable, ready: Ready, told: Mapping[str, Any]) -> Future[Done]:
        computed = segmenter.compute(ready)
        return writer.submit(_finish, segmenter, scan, computed, folder, label_scheme, attachments, told)

    def settle(scan: Readable, work: Callable[[], T]) -> T | Failed:
        try:
            return work()
        except OutputUnwritable:
            raise
        except BrainsegError as error:
            return Failed(scan.id, _bare(error))
        except MemoryError:
            return Failed(scan.id, _no_memory(scan))
        # The other scans must go on whatever one of them brings to light.
        except Exception as error:  # noqa: BLE001
            return Failed(scan.id, unexpected(f"scan {scan.id}", error))

    def outcome(scan: Readable, begun: Future[Done] | Skipped | Failed) -> Outcome:
        return settle(scan, begun.result) if isinstance(begun, Future) else begun

    coming = iter(scans)
    with (
        ThreadPoolExecutor(max_workers=1, thread_name_prefix="write") as writer,
        ThreadPoolExecutor(max_workers=1, thread_name_prefix="read") as reader,
    ):
        behind: Callable[[], Outcome] | None = None
        ahead: Future[Fetched] | None = None
        scan = next(coming, None)
        while scan is not None:
            fetched = settle(scan, (ahead or reader.submit(fetch, scan, hand.arena)).result)
            following = next(coming, None)
            hand.begin(fetched.plan.stages if isinstance(fetched, Ready) else None)
            needed = hand.together(ahead_of(following, segmenter))
            if needed > segmenter.limit:
                # Alone with the memory: what the last scan takes is given back before this one is computed.
                ahead = None
                if behind is not None:
                    yield behind()
                    behind = None
            else:
                ahead = reader.submit(fetch, following, hand.arena) if following is not None else None
            begun: Future[Done] | Skipped | Failed
            if isinstance(fetched, Ready):
                told = told_of_next(needed, segmenter.limit) if following is not None else {}
                begun = settle(scan, partial(begin, scan, fetched, told))
            else:
                begun = fetched
            del fetched  # it would be held until the next is there
            if behind is not None:
                yield behind()
            behind = partial(outcome, scan, begun)
            if following is not None and ahead is None:
                yield behind()
                behind = None
                hand.written()
            scan = following
        if behind is not None:
            yield behind()


def exit_status(outcomes: Sequence[object]) -> int:
    """0 when every scan has its results, 4 when some have, else what all scans failed with (3 if mixed)."""
    failed = [outcome.error.exit_status for outcome in outcomes if isinstance(outcome, Failed)]
    if not failed:
        return 0
    if len(failed) < len(outcomes):
        return 4
    return failed[0] if len(set(failed)) == 1 else 3


def _finish(
    segmenter: Segmenter,
    scan: Readable,
    computed: Computed,
    folder: Path,
    scheme: LabelScheme,
    kinds: Collection[AttachmentKind],
    told: Mapping[str, Any],
) -> Done:
    volume = computed.ready.volume
    segmentation = segmenter.label(computed)
    record = dict(segmentation.record)
    record.update(told)
    record["peak_memory_mb"] = _peak_memory_mb()
    if not segmentation.labels.any():
        record["warnings"] = [*record.get("warnings", []), "no tumour found"]
    if segmenter.spec.anatomy == "brain":
        record["warnings"] = [*record.get("warnings", []), *whole_head(volume)]
    mixed_up = [flag["words"] for flag in record.get("flags", ()) if flag["code"] in MIXED_UP]
    record["warnings"] = [*record.get("warnings", []), *mixed_up]
    segmentation = replace(segmentation, record=record)
    drawn = [kind for kind in kinds if kind not in DICOM_KINDS]
    attachments = attachments_of(drawn, volume, segmentation, segmenter.spec)
    attachments += scan.attachments(kinds, segmentation)
    return Done(volume.scan, write(segmentation, folder, label_scheme=scheme, attachments=attachments))


def ahead_of(following: Readable | None, segmenter: Segmenter) -> int:
    """Bytes that the next scan takes at most while it is read and prepared; 0 if its headers are refused."""
    if following is None:
        return 0
    try:
        return most_fetched(following.outline(), segmenter.spec)
    except BrainsegError:
        return 0


def _bare(error: BrainsegError) -> BrainsegError:
    """An error without the frames that it came through: they hold the voxels of the scan that it met."""
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error


def _stands(
    scan: Readable,
    folder: Path,
    accepted: Sequence[Mapping[str, Any]],
    attachments: Collection[AttachmentKind],
) -> bool:
    if not result_path(folder, scan.id, ".json").is_file():
        return False
    identity = scan.identity()
    return any(is_done(folder, scan.id, {**expected, **identity}, attachments) for expected in accepted)


def _peak_memory_mb() -> float:
    """The most memory that this process has held so far, in MB."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: there Linux counts what the parent held when it started this process.
        (peak,) = (line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return round(int(peak) / 1e3, 1)
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(held / (1e6 if sys.platform == "darwin" else 1e3), 1)


def _no_memory(scan: Readable) -> BudgetExceeded:
    return BudgetExceeded(
        "E_MEMORY", f"scan {scan.id} does not fit in memory.", "Give more memory, or a smaller --batch."
    )


def unexpected(what: str, error: Exception) -> BrainsegError:
    """An error that nobody thought of, met by a scan or a device."""
    # Its words may hold what stands in a file, and so a patient's name; where it arose is what helps.
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(frame.filename).name}, line {frame.lineno}"
    return BrainsegError("E_UNEXPECTED", f"{what}: {type(error).__name__} in {where}.", "Please report it.")
