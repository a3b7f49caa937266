"""The default model on whole real scans that it never saw, on unseen lesions, and on heads without a tumour.

Scans are read, segmented and written by the runtime, as a user's are; the truth is brought to its labels.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import nibabel
import numpy as np
import SimpleITK
import typer
from brainseg_runtime.bundle import Bundle
from brainseg_runtime.default_model import default_model
from brainseg_runtime.engines.base import Engine, EngineIdentity
from brainseg_runtime.geometry import Geometry
from brainseg_runtime.labels import decide
from brainseg_runtime.nifti import write_image, write_labels
from brainseg_runtime.overlap import dice
from brainseg_runtime.scans import find_scans, read
from brainseg_runtime.segmenter import Segmenter, load
from brainseg_runtime.spec import ModelSpec
from brainseg_trainer.dataset import find_training_scans
from brainseg_trainer.figures.cases import Case, cases
from brainseg_trainer.figures.comparison import draw_comparison
from brainseg_trainer.task import BRATS_WORDS

from benchmarks.cubes import crops
from benchmarks.report import table

BEGIN, END = "<!-- score: begin -->", "<!-- score: end -->"
REGIONS = ("WT", "TC", "ET")
REGISTERED = ("--resample-to", "t1c", "--register")
HEALTHY = 6
"""Heads without a tumour that are drawn of each kind."""


@dataclass(frozen=True)
class Patient:
    """Where one patient's files lie, and what their labels mean."""

    name: str
    truth_by: str
    """Who drew the truth."""
    images: Mapping[str, str]
    """Modality -> file."""
    truth: str
    labels: Mapping[int, int]
    """The file's value -> 1 NCR, 2 ED, 3 ET."""


BRATS = {1: 1, 2: 2, 4: 3}
TCGA = {"t1": "t1", "t1c": "t1c", "t2": "t2", "flair": "fla"}
FG, DU = "tcga-lgg/TCGA-FG-6692", "tcga-lgg/TCGA-DU-7294"
TWO = {"t1c": "T1c_subtrMeanDivStd.nii.gz", "flair": "Flair_subtrMeanDivStd.nii.gz"}
PATIENTS = (
    Patient(
        "TCGA-FG-6692",
        "experts, on a grid of 1.9 mm",
        {m: f"{FG}/raw_bet/OtherEXampleFromTCIA_{word}_bet.nii.gz" for m, word in TCGA.items()},
        f"{FG}/gt_from_BraTS20_Training_320_128grid_upsampled.nii.gz",
        BRATS,
    ),
    Patient(
        "TCGA-DU-7294",
        "a vote of other models",
        {m: f"{DU}/raw_bet/TCGA-DU-7294_{word}_bet.nii.gz" for m, word in TCGA.items()},
        f"{DU}/fusion/mav.nii.gz",
        BRATS,
    ),
    *(
        Patient(
            f"BRATS2013-{number}",
            "experts",
            {m: f"deepmedic-brats2013/brats_2013_pat{number}_1/{name}" for m, name in TWO.items()},
            f"deepmedic-brats2013/brats_2013_pat{number}_1/OTMultiClass.nii.gz",
            {1: 1, 2: 2, 3: 1, 4: 3},
        )
        for number in ("0001", "0002", "0006")
    ),
)
SINGLE = {
    "niivue-misc FLAIR": ("flair", "niivue-misc/FLAIR.nii.gz"),
    "niivue-misc MR_Gd": ("t1c", "niivue-misc/MR_Gd.nii.gz"),
    "pyradiomics-brain brain1": ("t1c", "pyradiomics-brain/brain1_image.nrrd"),
    "pyradiomics-brain brain2": ("t1c", "pyradiomics-brain/brain2_image.nrrd"),
}
"""Heads of which there is one modality: name -> which, and the file."""
SHOWN = [patient.name for patient in PATIENTS if patient.name.startswith("TCGA")]
"""Whose images may be shown: CC BY 3.0."""


def stage(patients: Sequence[Patient], data: Path, folder: Path) -> None:
    """Lay patients out as a folder of scans with truth, under BraTS' names and labels."""
    for patient in patients:
        place = folder / patient.name
        place.mkdir(parents=True)
        for modality, name in patient.images.items():
            copy = place / f"{patient.name}-{BRATS_WORDS[modality]}.nii.gz"
            copy.write_bytes((data / name).read_bytes())
        image = nibabel.load(data / patient.truth)
        found = np.asanyarray(image.dataobj)
        labels = np.zeros(found.shape, np.uint8)
        for value, label in patient.labels.items():
            labels[found == value] = label
        write_labels(place / f"{patient.name}-seg.nii.gz", labels, Geometry(labels.shape, image.affine))


def whole_scans(segmenter: Segmenter, folder: Path) -> list[Case]:
    """Every staged patient with truth and answer."""
    source = find_training_scans(folder, segmenter.spec)
    return list(cases(source, source.scans, segmenter.spec, {}, segmenter))


def stage_native(data: Path, folder: Path) -> None:
    """Lay out one patient as it came from the scanner: three grids, with the skull."""
    place = folder / "native"
    place.mkdir(parents=True)
    for modality, word in TCGA.items():
        (found,) = (data / FG / "native").glob(f"*_{word}.nii.gz")
        (place / f"native-{BRATS_WORDS[modality]}.nii.gz").write_bytes(found.read_bytes())


def refusals(data: Path, folder: Path, spec: ModelSpec) -> dict[str, str]:
    """Head of one modality -> the code by which it is refused, or nothing where it is not."""
    for name, (modality, file) in SINGLE.items():
        place = folder / name
        place.mkdir(parents=True)
        image = SimpleITK.ReadImage(str(data / file))
        SimpleITK.WriteImage(image, str(place / f"{name}-{BRATS_WORDS[modality]}.nii.gz"))
    found = find_scans(folder, spec)
    return {name: found.refused[name].code if name in found.refused else "" for name in SINGLE}


def overlaps(case: Case) -> dict[str, float]:
    """Region -> Dice, 1 where neither side has it."""
    assert case.answered is not None
    return {r: dice(case.labels.mask(r), case.answered.mask(r)) for r in REGIONS}


def lesions(engine: Engine, spec: ModelSpec, file: Path) -> dict[str, np.ndarray]:
    """Region -> Dice of every crop of patients that training does not know.

    Crops are z-scored over their brains already, so they go to the network as they are.
    """
    found = list(crops([file]))
    answers = [decide(engine.infer(crop.image[None])[0], spec) for crop in found]
    return {
        region.name: np.array(
            [
                dice(
                    np.isin(answer, region.labels) & crop.inside,
                    np.isin(np.where(crop.labels == 4, 3, crop.labels), region.labels),
                )
                for answer, crop in zip(answers, found, strict=True)
            ]
        )
        for region in spec.regions
    }


def healthy(data: Path, folder: Path) -> None:
    """Write heads without a tumour: MNI152's, which training never has, in a setting that it never has."""
    import jax
    from brainseg_trainer.simulation.heads import generator
    from brainseg_trainer.simulation.ingredients import SPACING_MM, gather
    from brainseg_trainer.simulation.setting import OTHER

    names = ("synthseg-labels", "mni152-nilearn", "brats2020-lesion-cubes")
    _, ingredients = gather(*(data / name for name in names))
    template = replace(ingredients, heads=ingredients.heads[:1])
    shape = (80, 96, 128)
    for kind, absent in (("MNI152-T1c-FLAIR", 1.0), ("MNI152-all", 0.0)):
        setting = OTHER._replace(tumour=0.0, grown=0.0, whole=0.0, absent=absent)
        images, _ = generator(template, shape, setting)(jax.random.split(jax.random.key(5000), HEALTHY))
        for n, image in enumerate(np.asarray(images)):
            name = f"{kind}-{n}"
            for c, word in enumerate(BRATS_WORDS.values()):
                values = np.rint(np.clip(image[..., c] * 256, -32768, 32767)).astype(np.int16)
                if values.any():
                    path = folder / name / f"{name}-{word}.nii.gz"
                    write_image(path, values, Geometry(shape, np.diag([*SPACING_MM, 1.0])))


def false_ml(segmenter: Segmenter, folder: Path) -> Iterator[tuple[str, float]]:
    """Scan -> ml that are called tumour, in heads that have none."""
    for scan in find_scans(folder, segmenter.spec).scans:
        yield scan.id, segmenter.segment(read(scan)).volumes_ml()["WT"]


@dataclass(frozen=True)
class Run:
    """One scan by the command line."""

    seconds: float
    """From the shell to the mask."""
    record: dict[str, Any]
    """Its JSON."""


def run(bundle: Path, scan: Path, out: Path, *options: str) -> Run:
    """Segment one scan as a user does."""
    program = Path(sys.executable).with_name("brainseg-infer")
    started = time.perf_counter()
    subprocess.run([str(program), str(scan), "-m", str(bundle), "-o", str(out), "-q", *options], check=True)
    seconds = time.perf_counter() - started
    return Run(seconds, json.loads((out / f"{scan.name}_seg.json").read_bytes()))


def page(
    bundle: Bundle,
    engine: EngineIdentity,
    scored: Sequence[Case],
    crops_dice: Mapping[str, np.ndarray],
    false: Mapping[str, float],
    timed: Run,
    native: Run,
    single: Mapping[str, str],
) -> str:
    """All of it, in Markdown, with date, versions and machine."""
    by = {patient.name: patient for patient in PATIENTS}
    found = {case.scan: overlaps(case) for case in scored}
    rows = [
        [name, ", ".join(by[name].images), by[name].truth_by, *(f"{d[r]:.3f}" for r in REGIONS)]
        for name, d in found.items()
    ]
    rows.append(["median", "", "", *(f"{median(d[r] for d in found.values()):.3f}" for r in REGIONS)])
    expert = next(case.labels.volumes_ml() for case in scored if case.scan == PATIENTS[0].name)
    thresholds = ", ".join(f"{region.name} {region.threshold:g}" for region in bundle.spec.regions)
    return "\n".join(
        [
            "## Measured on scans that training never saw",
            "",
            f"Written by `make score DATA=<folder>` on {date.today()}: {platform.machine()}, "
            f"{len(os.sched_getaffinity(0))} cores, {engine.engine} {engine.version} in {engine.precision}, "
            f"brainseg-runtime {version('brainseg-runtime')}, weights sha256 "
            f"{bundle.manifest['provenance']['model_sha256'][:16]}.",
            "",
            f"Dice on the whole volume, thresholds {thresholds}, no mirror averaging:",
            "",
            *table(["scan", "modalities", "truth by", *REGIONS], rows),
            f"The {len(next(iter(crops_dice.values())))} crops of 32^3 voxels around lesions of other "
            "patients (BraTS 2020's validation file), mean Dice, 1 where neither side has the region: "
            + ", ".join(f"{region} {values.mean():.3f}" for region, values in crops_dice.items())
            + ".",
            "",
            "Heads without a tumour, MNI152's anatomy in a setting that training never has "
            f"({HEALTHY} of each kind), ml called tumour:",
            "",
            *table(
                ["kind", "median", "largest"],
                [
                    [kind, f"{median(values):.2f}", f"{max(values):.2f}"]
                    for kind in dict.fromkeys(name.rsplit("-", 1)[0] for name in false)
                    for values in [[ml for name, ml in false.items() if name.startswith(kind)]]
                ],
            ),
            "One scan of 240x240x155 voxels and four modalities, from the shell to the mask: "
            f"{timed.seconds:.1f} s, peak {timed.record['peak_memory_mb'] / 1e3:.2f} GB; "
            + ", ".join(f"{stage} {value:.2f} s" for stage, value in timed.record["seconds"].items())
            + ".",
            "",
            f"{PATIENTS[0].name} as it came from the scanner, with its skull, the series registered onto T1c "
            "by `--resample-to t1c --register`, volumes in ml:",
            "",
            *table(
                ["", *REGIONS],
                [
                    [words, *(f"{ml[region]:.1f}" for region in REGIONS)]
                    for words, ml in (
                        ("experts", expert),
                        ("stripped", timed.record["volumes_ml"]),
                        ("with its skull", native.record["volumes_ml"]),
                    )
                ],
            ),
            "Heads of which there is a single modality: "
            + "; ".join(
                f"{name} ({SINGLE[name][0]}) {f'refused, {code}' if code else 'not refused'}"
                for name, code in single.items()
            )
            + ".",
            "",
        ]
    )


def main(
    data: Annotated[Path, typer.Argument(help="The folder that holds tcga-lgg, deepmedic-brats2013, ...")],
    bundle: Annotated[Path | None, typer.Option("-m", help="Another bundle than the default one.")] = None,
    write: Annotated[Path | None, typer.Option(help="Put the results into this page.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw truth beside answer here.")] = None,
) -> None:
    """Score a bundle on everything real that is at hand, and on heads without a tumour."""
    opened = Bundle.open(bundle or default_model())
    with tempfile.TemporaryDirectory() as name, load(opened.folder) as segmenter:
        folder = Path(name)
        stage(PATIENTS, data, folder / "patients")
        stage_native(data, folder)
        healthy(data, folder / "healthy")
        scored = whole_scans(segmenter, folder / "patients")
        if picture:
            draw_comparison([case for case in scored if case.scan in SHOWN], picture)
        text = page(
            opened,
            segmenter.engine.identity,
            scored,
            lesions(segmenter.engine, segmenter.spec, data / "brats2020-lesion-cubes" / "validation.npz"),
            dict(false_ml(segmenter, folder / "healthy")),
            run(opened.folder, folder / "patients" / PATIENTS[0].name, folder / "out"),
            run(opened.folder, folder / "native", folder / "out", *REGISTERED),
            refusals(data, folder / "single", segmenter.spec),
        )
    typer.echo(text)
    if write:
        before, rest = write.read_text().split(BEGIN)
        write.write_text(f"{before}{BEGIN}\n{text}{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    typer.run(main)
