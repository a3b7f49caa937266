"""Files that bear a wrong name, are another patient's, or are mirrored: how many are seen?"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from brainseg_runtime.fingerprint import fingerprint
from brainseg_runtime.heads import whole_head
from brainseg_runtime.scans import find_scans, onto, read
from brainseg_runtime.volume import Volume
from toys import toy_spec

from torture.rows import Row, Setup

__all__ = ["MIXUPS", "mixups", "real"]

NAMES = ("t1", "t1c", "t2", "flair")
Mixup = Callable[[Volume, Volume], Volume]


def _exchanged(one: str, other: str) -> Mixup:
    def change(volume: Volume, _: Volume) -> Volume:
        order = list(range(4))
        a, b = NAMES.index(one), NAMES.index(other)
        order[a], order[b] = b, a
        return replace(volume, data=np.asfortranarray(volume.data[..., order]))

    return change


def _anothers(name: str) -> Mixup:
    """One file is another patient's, on the same grid."""

    def change(volume: Volume, other: Volume) -> Volume:
        data = volume.data.copy(order="F")
        data[..., NAMES.index(name)] = other.data[..., NAMES.index(name)]
        return replace(volume, data=data)

    return change


def _mirrored(*names: str) -> Mixup:
    """Voxels mirrored left to right, the header as it was."""

    def change(volume: Volume, _: Volume) -> Volume:
        data = volume.data.copy(order="F")
        axis = int(np.argmax(np.abs(volume.geometry.affine[0, :3])))
        for name in names:
            data[..., NAMES.index(name)] = np.flip(data[..., NAMES.index(name)], axis)
        return replace(volume, data=data)

    return change


NOTHING = "nothing (false alarms)"
MIXUPS: Mapping[str, tuple[str | None, Mixup]] = {
    NOTHING: (None, lambda volume, _: volume),
    "T1 and T1c exchanged": ("Q_EXCHANGED", _exchanged("t1", "t1c")),
    "T2 and FLAIR exchanged": ("Q_EXCHANGED", _exchanged("t2", "flair")),
    "FLAIR of another patient": ("Q_OTHER_HEAD", _anothers("flair")),
    "T1c of another patient": ("Q_OTHER_HEAD", _anothers("t1c")),
    "FLAIR mirrored": ("Q_MIRRORED", _mirrored("flair")),
    "T1 mirrored": ("Q_MIRRORED", _mirrored("t1")),
    "all files mirrored (cannot be seen)": (None, _mirrored(*NAMES)),
}


def _rows(volumes: Sequence[Volume], what: str) -> Iterator[Row]:
    for name, (code, change) in MIXUPS.items():
        flagged = [
            {flag.code for flag in fingerprint(change(volume, volumes[n - 1]), NAMES)}
            for n, volume in enumerate(volumes)
        ]
        hits = sum(map(bool, flagged))
        found = f"{hits} flagged" + (f", {sum(code in codes for codes in flagged)} as that" if code else "")
        yield Row(f"{what}: {name}", str(len(volumes)), found, not hits if name == NOTHING else None)


def mixups(setup: Setup) -> Iterator[Row]:
    """On synthetic heads as the demo is trained on, made here."""
    from brainseg_trainer.synthetic import write_scans

    write_scans(setup.place / "heads", setup.count(40, 3), 11, lambda *_: None)
    volumes = [read(scan) for scan in find_scans(setup.place / "heads", toy_spec()).scans]
    yield from _rows(volumes, "synthetic heads")


def real(setup: Setup) -> Iterator[Row]:
    """On the real scans of four modalities that there are; and heads with the skull on."""
    folders = sorted(setup.data.glob("tcga-lgg/*/raw_bet")) if setup.data else []
    volumes = [read(scan) for folder in folders for scan in find_scans(folder, toy_spec()).scans]
    if volumes:
        yield from _rows(volumes, "real heads, TCGA-LGG")
        yield from _skulls(setup, volumes)
    else:
        yield Row("real heads", "0", "none here", None)


def _skulls(setup: Setup, stripped: Sequence[Volume]) -> Iterator[Row]:
    """Whether a head that still has its skull is told from a brain."""
    assert setup.data is not None
    folders = sorted(setup.data.glob("tcga-lgg/*/native"))
    found = [onto(find_scans(folder, toy_spec()), "t1c") for folder in folders]
    heads = [read(scan) for each in found for scan in each.scans]
    seen, false = (sum(bool(whole_head(volume)) for volume in group) for group in (heads, stripped))
    yield Row(
        "real heads with their skull, TCGA-LGG", str(len(heads)), f"{seen} warned of", seen == len(heads)
    )
    yield Row("real heads without it", str(len(stripped)), f"{false} warned of (false alarms)", not false)
