"""Finding scans by the names of their files, and reading them on one grid."""

import json
import os
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from brainseg_runtime.errors import ScanRefused
from brainseg_runtime.geometry import Geometry
from brainseg_runtime.names import ALIASES, Names
from brainseg_runtime.nifti import read_labels, write_image, write_labels
from brainseg_runtime.scans import Found, Scan, ScanFile, explain, find_scans, read
from brainseg_runtime.spec import Label, Modality, ModelSpec, Region

SHAPE = (10, 9, 8)
AFFINE = np.array([[-1.0, 0, 0, 90], [0, -1, 0, 120], [0, 0, 1.5, -70], [0, 0, 0, 1]])
GEOMETRY = Geometry(SHAPE, AFFINE)


def model(*modalities: str, reference: str | None = None) -> ModelSpec:
    return ModelSpec(
        name="test",
        modalities=tuple(Modality(name, ALIASES[name]) for name in modalities),
        reference=reference or modalities[0],
        labels=(Label(1, "tumour"),),
        regions=(Region("WT", (1,)),),
        tile=(8, 8, 8),
        divisor=(4, 4, 4),
    )


FOUR = model("t1", "t1c", "t2", "flair", reference="t1c")
TWO = model("t1c", "flair")


def touch(root: Path, *names: str) -> Path:
    """Empty files; finding looks at names alone."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def matched(found: Found) -> dict[str, tuple[str, ...]]:
    return {scan.id: tuple(file.path.name for file in scan.files) for scan in found.scans}


def the_scan(found: Found) -> Scan:
    assert not found.refused
    (scan,) = found.scans
    return scan


def codes(found: Found) -> dict[str, str]:
    return {name: error.code for name, error in found.refused.items()}


# ---- what a name says -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("BraTS-GLI-00000-000-t1n", "t1"),
        ("BraTS-GLI-00000-000-t1c", "t1c"),
        ("BraTS-GLI-00000-000-t2w", "t2"),
        ("BraTS-GLI-00000-000-t2f", "flair"),
        ("BraTS-GLI-00000-000-seg", "truth"),
        ("BraTS2021_00000_t1", "t1"),
        ("BraTS2021_00000_t1ce", "t1c"),
        ("BraTS2021_00000_FLAIR", "flair"),
        ("Brats18_2013_2_1_t1Gd", "t1c"),
        ("TCGA-DU-7294_fla_bet", "flair"),
        ("TCGA-DU-7294_t1c_bet", "t1c"),
        ("MRHR_FLAIR_AX_X_MRHR_FLAIR_AX_SE_IR_5_tir2d1_21_fla", "flair"),
        ("MRHR_T1_AX_POST_GAD_X_MRHR_T1_AX_POST_GAD_SE_13_se2d1r_t1c", "t1c"),
        ("MRHR_T2_AX_X_MRHR_T2_AX_SE_2_tse2d1_11_t2", "t2"),
        ("T1_AX_X_T1_AX_SE_10_se2d1_t1", "t1"),
        ("MRHR_T1_AX_POST_GAD_SE_13", "t1c"),
        ("CT1", "t1c"),
        ("T1+C", "t1c"),
        ("T1w_ce", "t1c"),
        ("P1_T1_no_contrast", "t1"),
        ("P1_T1_pre_gad", "t1"),
        ("P1_T1_contrast", "t1c"),
        ("T2_FLAIR", "flair"),
        ("flair_t2", "flair"),
        ("t2_tirm_tra_dark-fluid", "flair"),
        ("t2_space_dark_fluid", "flair"),
        ("sub-01_ses-post_T1w", "t1"),
        ("sub-01_ses-post_ce-gadolinium_run-1_T1w", "t1c"),
        ("sub-01_ce-anything_T1w", "t1c"),
        ("sub-01_FLAIR", "flair"),
        ("sub-01_space-T1w_dseg", "truth"),
        ("CE-001_T1w", "t1"),
        ("t1_seg", "truth"),
        ("flair_tumor_mask", "truth"),
        ("t1_bet_mask", "other"),
        ("t1c_brain_mask", "other"),
        ("UCSF_brain_parenchyma_segmentation", "other"),
        ("UCSF_tumor_segmentation", "truth"),
        ("P1_T2_star", "other"),
        ("P1_T2star", None),
        ("P1_adc", None),
        ("brainmask", None),
        ("t1weird", None),
        ("at1", None),
    ],
)
def test_a_name_says_what_the_image_is(name, role):
    """The words that end last in a name decide; unknown words say nothing."""
    reading = Names(FOUR).read(name)
    assert (reading and reading.role) == role
    again = Names(FOUR).read(name.upper())
    assert (again and again.role) == role


def test_no_alias_means_two_things():
    """The table is unambiguous."""
    aliases = [alias for words in ALIASES.values() for alias in words]
    assert len(aliases) == len(set(aliases))


def test_a_models_own_words_come_before_the_table(tmp_path):
    """A spec's aliases and names win over ALIASES, also without aliases."""
    spec = ModelSpec(**{**vars(TWO), "modalities": (Modality("t1c", ("t1", "contrast-t1")), Modality("adc"))})
    spec = ModelSpec(**{**vars(spec), "reference": "adc"})
    names = Names(spec)
    assert names.read("x_t1").role == "t1c"
    assert names.read("x_contrast_T1").role == "t1c"
    assert names.read("x_ADC").role == "adc"
    assert names.read("x_t1n").role == "t1"
    touch(tmp_path, "x_t1.nii.gz", "x_adc.nii.gz")
    assert matched(find_scans(tmp_path, spec)) == {"x": ("x_t1.nii.gz", "x_adc.nii.gz")}


# ---- layouts ------------------------------------------------------------------------------------------

BRATS_2023 = ("t1n", "t1c", "t2w", "t2f")
BRATS_2021 = ("t1", "t1ce", "t2", "flair")


@pytest.mark.parametrize("folder", ["", "{}/"], ids=["flat", "a folder per scan"])
@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("{}-{}.nii.gz", BRATS_2023),
        ("{}_{}.nii.gz", BRATS_2023),
        ("{}_{}.nii.gz", BRATS_2021),
        ("{}_{}.nii", BRATS_2021),
        ("{}_{}_bet.nii.gz", ("t1", "t1c", "t2", "fla")),
        ("{}_{}.NII.GZ", ("T1", "T1Gd", "T2", "FLAIR")),
        ("{}.{}.reg.nii.gz", BRATS_2021),
    ],
)
def test_brats_layouts(tmp_path, folder, form, words):
    """BraTS names of all years, flat or a folder per scan, with words around them, and their truth."""
    ids = ["BraTS-GLI-00000-000", "BraTS-GLI-00001-100"]
    for scan in ids:
        touch(tmp_path, *(folder.format(scan) + form.format(scan, word) for word in (*words, "seg")))
    found = find_scans(tmp_path, FOUR)
    assert matched(found) == {scan: tuple(form.format(scan, word) for word in words) for scan in ids}
    assert [file.modality for file in found.scans[0].files] == ["t1", "t1c", "t2", "flair"]
    assert [scan.truth.name for scan in found.scans] == [form.format(scan, "seg") for scan in ids]
    assert {scan.reference for scan in found.scans} == {"t1c"}
    assert {scan.root for scan in found.scans} == {tmp_path}


def test_bids(tmp_path):
    """BIDS scans are called by subject and session; derived and other images do not disturb."""
    for session in ("ses-1", "ses-2"):
        prefix = f"sub-07/{session}/anat/sub-07_{session}"
        touch(tmp_path, f"{prefix}_T1w.nii.gz", f"{prefix}_ce-gadolinium_run-1_T1w.nii.gz")
        touch(tmp_path, f"{prefix}_acq-tse_T2w.nii.gz", f"{prefix}_FLAIR.nii.gz", f"{prefix}_T1w.json")
        touch(tmp_path, f"{prefix}_desc-brain_mask.nii.gz", f"{prefix}_T2star.nii.gz")
    touch(tmp_path, "sub-07/ses-1/anat/sub-07_ses-1_label-lesion_dseg.nii.gz", "dataset_description.json")
    found = find_scans(tmp_path, FOUR)
    assert not found.refused
    assert list(matched(found)) == ["sub-07_ses-1", "sub-07_ses-2"]
    assert matched(found)["sub-07_ses-2"][1] == "sub-07_ses-2_ce-gadolinium_run-1_T1w.nii.gz"
    assert [scan.truth is not None for scan in found.scans] == [True, False]


def test_two_bids_runs_are_doubled(tmp_path):
    """Nobody chooses between two runs of one modality."""
    touch(tmp_path, "sub-1_run-1_FLAIR.nii.gz", "sub-1_run-2_FLAIR.nii.gz", "sub-1_ce-gd_T1w.nii.gz")
    error = find_scans(tmp_path, TWO).refused["sub-1"]
    assert error.code == "E_MODALITY_DOUBLED"
    assert "sub-1_run-1_FLAIR.nii.gz" in str(error)
    assert "sub-1_run-2_FLAIR.nii.gz" in str(error)


def test_bare_names_are_called_by_their_folder(tmp_path):
    """HD-GLIO's T1, CT1, T2, FLAIR: the folder, or its path under the input, names the scan."""
    bare = ("T1.nii.gz", "CT1.nii.gz", "T2.nii.gz", "FLAIR.nii.gz")
    touch(tmp_path / "in" / "p1", *bare, "seg.nii.gz")
    touch(tmp_path / "in" / "p2" / "ses1", *bare)
    assert matched(find_scans(tmp_path / "in", FOUR)) == {"p1": bare, "p2_ses1": bare}
    assert the_scan(find_scans(tmp_path / "in" / "p1", FOUR)).id == "p1"
    assert the_scan(find_scans(tmp_path / "in" / "p1", FOUR)).truth.name == "seg.nii.gz"


def test_an_input_of_dot_has_a_name(tmp_path, monkeypatch):
    """A scan found from inside its folder is called by that folder."""
    touch(tmp_path / "p1", "t1c.nii", "flair.nii")
    monkeypatch.chdir(tmp_path / "p1")
    assert the_scan(find_scans(".", TWO)).id == "p1"


def test_the_modality_may_stand_first(tmp_path):
    """t1c_P1, flair_P1, t1c_P2 ... in one folder are two scans."""
    touch(tmp_path, *(f"{word}_P{n}.nii.gz" for word in ("t1c", "flair", "seg") for n in (1, 2)))
    found = find_scans(tmp_path, TWO)
    assert list(matched(found)) == ["P1", "P2"]
    assert found.scans[1].truth.name == "seg_P2.nii.gz"


def test_a_scanners_names_in_a_patients_folder_are_one_scan(tmp_path):
    """Names that begin differently belong together where all hold the patient's folder."""
    names = ["AX_T1_POST_PAT7_3", "COR_T2_FLAIR_PAT7_se_12", "PAT7_T2_tse_AX_5", "SAG_T1_PAT7_mprage_1"]
    touch(tmp_path / "PAT7", *(f"{name}.nii.gz" for name in names))
    scan = the_scan(find_scans(tmp_path, FOUR))
    assert scan.id == "PAT7"
    assert [file.path.name[:5] for file in scan.files] == ["SAG_T", "AX_T1", "PAT7_", "COR_T"]


@pytest.mark.parametrize(
    "names",
    [
        ("BraTS2021_00000_t1c", "BraTS2021_00001_flair"),
        ("BraTS2021_00000_t1c_bet", "BraTS2021_00001_flair"),
        ("BraTS2021_site2_P1_t1c", "BraTS2021_site2_P2_flair"),
        ("P1_t1c", "P2_flair"),
        ("Smith_t1c", "Jones_flair"),
    ],
)
def test_two_patients_never_make_one_scan(tmp_path, names):
    """One patient's T1c and another's FLAIR, alone in a folder, are two incomplete scans."""
    touch(tmp_path / "BraTS2021", *(f"{name}.nii.gz" for name in names))
    found = find_scans(tmp_path, TWO)
    assert not found.scans
    assert set(codes(found).values()) == {"E_MODALITY_MISSING"}
    assert len(found.refused) == 2


def test_files_by_name(tmp_path):
    """Single files make scans as a folder does, each counted once, beside folders."""
    touch(tmp_path / "a", "P1_t1c.nii.gz", "P1_flair.nii.gz", "P9_t1c.nii.gz")
    touch(tmp_path / "b", "P2_t1c.nii.gz", "P2_flair.nii.gz")
    files = [tmp_path / "a" / "P1_t1c.nii.gz", str(tmp_path / "a" / "P1_flair.nii.gz")]
    found = find_scans([*files, files[0], tmp_path / "b", tmp_path / "b" / "P2_flair.nii.gz"], TWO)
    assert list(matched(found)) == ["P1", "P2"]
    assert not found.refused
    assert [scan.root for scan in found.scans] == [None, tmp_path / "b"]


def test_hidden_files_are_not_there(tmp_path):
    """What macOS leaves behind is no second modality."""
    touch(tmp_path, "P1_t1c.nii.gz", "P1_flair.nii.gz", "._P1_t1c.nii.gz", ".P1_flair.nii.gz")
    touch(tmp_path, "__MACOSX/P1_t1c.nii.gz", ".cache/P1_t1c.nii.gz", "P1_t1c.json", "P1_t1c.txt")
    assert len(find_scans(tmp_path, TWO).matches) == 2
    assert the_scan(find_scans(tmp_path, TWO)).id == "P1"


def test_results_beside_the_inputs_are_neither_modality_nor_truth(tmp_path):
    """A mask that brainseg wrote is known by its JSON; without one a _seg is the truth."""
    touch(tmp_path, "P1_t1c.nii.gz", "P1_flair.nii.gz", "P1_seg.nii.gz")
    assert the_scan(find_scans(tmp_path, TWO)).truth.name == "P1_seg.nii.gz"
    touch(tmp_path, "P1_seg.json")
    assert the_scan(find_scans(tmp_path, TWO)).truth is None


def test_a_truth_belongs_to_the_scan_it_names(tmp_path):
    """No scan gets another's truth, and two truths are none."""
    touch(tmp_path, "P1_t1c.nii.gz", "P1_flair.nii.gz", "P1_2_t1c.nii.gz", "P1_2_flair.nii.gz")
    touch(tmp_path, "P1_2_tumor_seg.nii.gz", "P3_seg.nii.gz", "gt.nii.gz")
    found = find_scans(tmp_path, TWO)
    assert {s.id: s.truth and s.truth.name for s in found.scans} == {
        "P1": None,
        "P1_2": "P1_2_tumor_seg.nii.gz",
    }
    touch(tmp_path, "P1_2_gt.nii.gz")
    assert find_scans(tmp_path, TWO).scans[1].truth is None


def test_names_beyond_ascii(tmp_path):
    """Patients whose names differ only beyond ASCII stay apart."""
    touch(tmp_path, *(f"{who}_{word}.nii.gz" for who in ("王", "李", "José") for word in ("t1c", "flair")))
    assert set(matched(find_scans(tmp_path, TWO))) == {"王", "李", "José"}


# ---- dataset.json -------------------------------------------------------------------------------------


def write_dataset(root: Path, contents: object) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(contents if isinstance(contents, str) else json.dumps(contents))


NNUNET = {"channel_names": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}}


@pytest.mark.parametrize("key", ["channel_names", "modality"])
@pytest.mark.parametrize("at", [".", ".."])
def test_nnunet(tmp_path, at, key):
    """Numbered channels mean what the dataset.json beside or above them says, in its order."""
    images = touch(tmp_path / "set" / "imagesTs", *(f"case_1_{n:04}.nii.gz" for n in range(4)))
    write_dataset(images / at, {key: NNUNET["channel_names"]})
    touch(tmp_path / "set", "labelsTs/case_1.nii.gz", "labelsTs/case_2.nii.gz")
    scan = the_scan(find_scans(images, FOUR))
    assert scan.id == "case_1"
    assert [file.path.name[-11:-7] for file in scan.files] == ["0001", "0002", "0003", "0000"]
    assert scan.truth.samefile(tmp_path / "set" / "labelsTs" / "case_1.nii.gz")
    assert the_scan(find_scans(tmp_path, FOUR)).id == "case_1"


@pytest.mark.parametrize(
    "contents",
    [
        None,
        "{",
        "[]",
        "{}",
        {"channel_names": {}},
        {"channel_names": {"zero": "T1"}},
        {"channel_names": {"1": "T1"}},
        {"channel_names": 7},
        " " * (2 << 20),
        "[" * 100_000,
    ],
    ids=["absent", "cut", "list", "empty", "none", "words", "gap", "number", "huge", "deep"],
)
def test_channels_without_names_are_refused(tmp_path, contents):
    """No order of channels is ever assumed."""
    touch(tmp_path, *(f"case_{n:04}.nii.gz" for n in range(4)))
    if contents is not None:
        write_dataset(tmp_path, contents)
    found = find_scans(tmp_path, FOUR)
    assert codes(found) == {"case": "E_DATASET_JSON"}
    assert not found.scans


def test_a_channel_that_is_not_there_is_missing(tmp_path):
    """A numbered scan lacks a modality if the file or its name in dataset.json is absent."""
    touch(tmp_path, "a_0000.nii.gz", "b_0000.nii.gz", "b_0001.nii.gz")
    write_dataset(tmp_path, {"channel_names": {"0": "T1ce", "1": "zscore"}})
    assert codes(find_scans(tmp_path, TWO)) == {"a": "E_MODALITY_MISSING", "b": "E_MODALITY_MISSING"}
    assert matched(find_scans(tmp_path, model("t1c"))) == {"a": ("a_0000.nii.gz",), "b": ("b_0000.nii.gz",)}


def test_a_number_alone_is_no_channel(tmp_path):
    """Names that merely end in four digits, with no channel 0, say nothing."""
    touch(tmp_path, "IXI_0012.nii.gz", "P1_t1c.nii.gz", "P1_flair.nii.gz")
    assert the_scan(find_scans(tmp_path, TWO)).id == "P1"


def test_four_dimensional_files_of_the_decathlon(tmp_path):
    """One 4-D file is all modalities of a scan, by its dataset.json, and reads as such."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 100, (*SHAPE, 4)).astype(np.uint8)
    write_dataset(tmp_path, {"modality": NNUNET["channel_names"], "tensorImageSize": "4D"})
    write_labels(tmp_path / "imagesTr" / "BRATS_001.nii.gz", frames, GEOMETRY)
    write_labels(tmp_path / "labelsTr" / "BRATS_001.nii.gz", frames[..., 0] // 50, GEOMETRY)
    scan = the_scan(find_scans(tmp_path, FOUR))
    assert scan.id == "BRATS_001"
    assert [(file.modality, file.index) for file in scan.files] == [
        ("t1", 1),
        ("t1c", 2),
        ("t2", 3),
        ("flair", 0),
    ]
    volume = read(scan)
    np.testing.assert_array_equal(volume.data, frames[..., [1, 2, 3, 0]])
    assert [source.file for source in volume.sources] == ["BRATS_001.nii.gz"] * 4
    np.testing.assert_array_equal(read_labels(scan.truth, scan.root)[0], frames[..., 0] // 50)


def test_a_truth_beside_the_input_can_be_read(tmp_path):
    """The folder of labels lies outside an input of imagesTr, and is no link."""
    write_dataset(tmp_path, {"channel_names": {"0": "T1ce"}})
    image = np.arange(720, dtype=np.float32).reshape(SHAPE)
    write_image(tmp_path / "imagesTr" / "a_0000.nii.gz", image, GEOMETRY)
    write_labels(tmp_path / "labelsTr" / "a.nii.gz", np.ones(SHAPE, np.uint8), GEOMETRY)
    scan = the_scan(find_scans(tmp_path / "imagesTr", model("t1c")))
    assert read_labels(scan.truth, scan.root)[0].all()


def test_frames_must_be_as_many_as_channels(tmp_path):
    """A 4-D file with more frames than dataset.json names is refused, not cut."""
    write_dataset(tmp_path, {"modality": {"0": "T1ce", "1": "FLAIR"}})
    data = np.random.default_rng(0).integers(0, 100, (*SHAPE, 3)).astype(np.uint8)
    write_labels(tmp_path / "imagesTr" / "a.nii.gz", data, GEOMETRY)
    with pytest.raises(ScanRefused, match=r"E_DATASET_JSON.*3 frames.*2 channels"):
        read(the_scan(find_scans(tmp_path, TWO)))


# ---- refusals -----------------------------------------------------------------------------------------


SPARE = replace(FOUR, modalities=tuple(replace(m, optional=m.name in ("t1", "t2")) for m in FOUR.modalities))
"""Four modalities of which two may lack."""


@pytest.mark.parametrize("lacking", [(), ("t1",), ("t2",), ("t1", "t2")], ids=str)
def test_an_optional_modality_may_lack(tmp_path, lacking):
    """Its channel is 0, the others stand where they belong, and the volume says which was not given."""
    for value, word in enumerate(("t1", "t1c", "t2", "flair"), start=1):
        if word not in lacking:
            image = np.full(SHAPE, value, np.float32)
            image[0] = 0
            write_image(tmp_path / f"P1_{word}.nii.gz", image, GEOMETRY)
    volume = read(the_scan(find_scans(tmp_path, SPARE)))
    assert volume.absent == lacking
    given = [0 if word in lacking else n for n, word in enumerate(("t1", "t1c", "t2", "flair"), start=1)]
    assert volume.data[1, 1, 1].tolist() == given
    assert {source.modality for source in volume.sources} == {"t1", "t1c", "t2", "flair"} - set(lacking)


@pytest.mark.parametrize("lacking", ["t1c", "flair"])
def test_what_is_not_optional_may_not_lack(tmp_path, lacking):
    """The refusal names what is needed, not what could be done without."""
    touch(tmp_path, *(f"P1_{word}.nii.gz" for word in ("t1c", "flair") if word != lacking))
    refusal = find_scans(tmp_path, SPARE).refused["P1"]
    assert refusal.code == "E_MODALITY_MISSING"
    assert f"lacks {lacking}." in str(refusal)


def test_a_missing_modality_names_what_was_found_and_what_was_expected(tmp_path):
    """An incomplete scan is refused, the complete one beside it is found."""
    touch(tmp_path, "P1_t1c.nii.gz", "P1_t2.nii.gz", "P2_t1c.nii.gz", "P2_flair.nii.gz")
    found = find_scans(tmp_path, TWO)
    assert list(matched(found)) == ["P2"]
    error = found.refused["P1"]
    assert error.code == "E_MODALITY_MISSING"
    for word in ("P1_t1c.nii.gz", "t2", "lacks flair", "fla"):
        assert word in str(error)


def test_a_doubled_modality_names_both_files(tmp_path):
    """Two files for one modality are never chosen between."""
    touch(tmp_path, "P1_t1c.nii.gz", "P1_flair.nii.gz", "P1_t1ce.nii.gz")
    error = find_scans(tmp_path, TWO).refused["P1"]
    assert error.code == "E_MODALITY_DOUBLED"
    assert "P1_t1c.nii.gz" in str(error)
    assert "P1_t1ce.nii.gz" in str(error)
    touch(tmp_path / "x", "T1c.nii.gz", "T1c.nii", "flair.nii")
    assert codes(find_scans(tmp_path / "x", TWO)) == {"x": "E_MODALITY_DOUBLED"}


def test_a_doubled_scan_is_refused_twice(tmp_path):
    """Two scans that would be written under one name are both refused, capitals aside."""
    for folder, who in (("a", "P1"), ("b", "P1"), ("c", "p2"), ("d", "P2"), ("e", "P3")):
        touch(tmp_path / folder, f"{who}_t1c.nii.gz", f"{who}_flair.nii.gz")
    found = find_scans(tmp_path, TWO)
    assert list(matched(found)) == ["P3"]
    assert codes(found) == dict.fromkeys(("P1", "P2", "p2"), "E_SCAN_DOUBLED")
    assert str(tmp_path / "a") in str(found.refused["P1"])
    assert str(tmp_path / "b") in str(found.refused["P1"])


def test_an_absent_input_is_refused(tmp_path):
    """A path that does not exist stops the search, whatever else was given."""
    touch(tmp_path, "P1_t1c.nii.gz", "P1_flair.nii.gz")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("nothing", "dangling"):
        with pytest.raises(ScanRefused, match="E_INPUT_MISSING"):
            find_scans([tmp_path, tmp_path / name], TWO)


def test_a_search_without_scans_says_what_it_saw(tmp_path):
    """No modality anywhere is a refusal that names the files that were there."""
    touch(tmp_path, "brain.nii.gz", "P1_seg.nii.gz", "notes.txt")
    for inputs in (tmp_path, [], tmp_path / "notes.txt"):
        with pytest.raises(ScanRefused) as caught:
            find_scans(inputs, TWO)
        assert caught.value.code == "E_NO_SCANS"
        assert caught.value.exit_status == 3
    with pytest.raises(ScanRefused, match=r"brain\.nii\.gz"):
        find_scans(tmp_path, TWO)


def test_linked_folders_are_named_and_not_entered(tmp_path):
    """A link to a folder leads nowhere, not even in a circle, and is told."""
    touch(tmp_path / "out", "P9_t1c.nii.gz", "P9_flair.nii.gz")
    touch(tmp_path / "in", "P1_t1c.nii.gz", "P1_flair.nii.gz")
    (tmp_path / "in" / "away").symlink_to(tmp_path / "out")
    (tmp_path / "in" / "circle").symlink_to(tmp_path / "in")
    found = find_scans(tmp_path / "in", TWO)
    assert the_scan(found).id == "P1"
    assert "away: nothing, a link to a folder" in explain(found, TWO)
    (tmp_path / "entry").symlink_to(tmp_path / "in")
    assert the_scan(find_scans(tmp_path / "entry", TWO)).id == "P1"


def test_explain_shows_the_table_and_every_file(tmp_path):
    """--explain-matching names all words, all files, what they were taken for, and why."""
    touch(tmp_path, "P1_t1c.nii.gz", "P1_flair.nii.gz", "P1_seg.nii.gz", "P1_adc.nii.gz", "P2_t1c.nii.gz")
    text = explain(find_scans(tmp_path, TWO), TWO)
    for line in (
        "flair: flair, fla",
        "truth: seg",
        "P1_t1c.nii.gz: t1c of scan P1, by 't1c'",
        "P1_seg.nii.gz: truth of scan P1, by 'seg'",
        "P1_adc.nii.gz: nothing, no word of the table",
        "Scans: P1",
        "Refused: P2: E_MODALITY_MISSING",
    ):
        assert line in text


# ---- reading ------------------------------------------------------------------------------------------


def write_scan(root: Path, spec: ModelSpec, geometry: Geometry = GEOMETRY) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    images = {m.name: rng.normal(50, 20, geometry.shape).astype(np.float32) for m in spec.modalities}
    for name, image in images.items():
        write_image(root / f"P1_{name}.nii.gz", image, geometry)
    return images


def test_a_volume_holds_the_modalities_in_the_specs_order(tmp_path):
    """Channels, sources and grid are those of the files."""
    images = write_scan(tmp_path, FOUR)
    volume = read(the_scan(find_scans(tmp_path, FOUR)))
    for c, name in enumerate(("t1", "t1c", "t2", "flair")):
        np.testing.assert_array_equal(volume.data[..., c], images[name])
        assert volume.sources[c].modality == name
        assert volume.sources[c].file == f"P1_{name}.nii.gz"
        assert len(volume.sources[c].sha256) == 64
    assert volume.scan == "P1"
    assert volume.geometry.distance(GEOMETRY) < 1e-4
    assert volume.geometry.header is not None


def test_the_grid_is_the_references(tmp_path):
    """Within the tolerance the reference's affine and header are the volume's."""
    write_scan(tmp_path, FOUR)
    moved = AFFINE.copy()
    moved[0, 3] += 0.05
    image = np.arange(720, dtype=np.float32).reshape(SHAPE)
    write_image(tmp_path / "P1_t1c.nii.gz", image, Geometry(SHAPE, moved))
    volume = read(the_scan(find_scans(tmp_path, FOUR)))
    assert volume.geometry.affine[0, 3] == pytest.approx(90.05)
    np.testing.assert_array_equal(volume.geometry.affine, nibabel.load(tmp_path / "P1_t1c.nii.gz").affine)


@pytest.mark.parametrize(
    ("geometry", "words"),
    [
        (Geometry((10, 9, 9), AFFINE), ["10x9x9", "10x9x8", "1.5 mm away"]),
        (Geometry(SHAPE, AFFINE + np.eye(4, k=3) * 0.2), ["0.2 mm away"]),
        (Geometry(SHAPE, AFFINE @ np.diag([1, 1, 1.1, 1])), ["1.65 mm", "1.5 mm", "1.05 mm away"]),
        (Geometry(SHAPE, AFFINE @ np.diag([-1, 1, 1, 1])), ["RPS", "LPS"]),
    ],
    ids=["shape", "moved", "spacing", "mirrored"],
)
def test_another_grid_is_refused_in_mm(tmp_path, geometry, words):
    """A modality on another grid is refused, with both files, both grids and the difference."""
    write_scan(tmp_path, TWO)
    image = np.random.default_rng(0).normal(size=geometry.shape).astype(np.float32)
    write_image(tmp_path / "P1_flair.nii.gz", image, geometry)
    with pytest.raises(ScanRefused) as caught:
        read(the_scan(find_scans(tmp_path, TWO)))
    assert caught.value.code == "E_GEOMETRY_MISMATCH"
    for word in ("P1_flair.nii.gz", "P1_t1c.nii.gz", *words):
        assert word in str(caught.value)


def test_one_bad_file_refuses_the_scan(tmp_path):
    """A damaged, constant or linked-away modality refuses the scan by its own code."""
    write_scan(tmp_path / "in", TWO)
    scan = the_scan(find_scans(tmp_path / "in", TWO))
    path = tmp_path / "in" / "P1_flair.nii.gz"
    content = path.read_bytes()
    for code, bad in (("E_EMPTY", b""), ("E_TRUNCATED", content[:-9]), ("E_TRAILING", content + b"x")):
        path.write_bytes(bad)
        with pytest.raises(ScanRefused, match=f"{code}.*P1_flair"):
            read(scan)
    path.unlink()
    with pytest.raises(ScanRefused, match="E_INPUT_MISSING"):
        read(scan)
    (tmp_path / "away.nii.gz").write_bytes(content)
    path.symlink_to(tmp_path / "away.nii.gz")
    with pytest.raises(ScanRefused, match="E_NOT_FILE"):
        read(scan)
    assert read(the_scan(find_scans(list((tmp_path / "in").iterdir()), TWO))).scan == "P1"


def test_a_fifo_does_not_stop_the_search(tmp_path):
    """A fifo named as a modality is found by its name and refused when read, without waiting."""
    write_scan(tmp_path, TWO)
    (tmp_path / "P1_flair.nii.gz").unlink()
    os.mkfifo(tmp_path / "P1_flair.nii.gz")
    with pytest.raises(ScanRefused, match="E_NOT_FILE"):
        read(the_scan(find_scans(tmp_path, TWO)))


def test_a_scan_may_name_one_file_once(tmp_path):
    """Reading depends on the scan alone, not on how it was found."""
    images = write_scan(tmp_path, TWO)
    scan = Scan("x", (ScanFile("flair", tmp_path / "P1_flair.nii.gz"),), "flair")
    np.testing.assert_array_equal(read(scan).data[..., 0], images["flair"])


# ---- real scans ---------------------------------------------------------------------------------------


@pytest.mark.data
def test_real_brain_extracted_scans_are_found_and_read(data_root):
    """Both TCGA-LGG patients, with different form codes per file, read on their T1c's grid."""
    for patient, name in (("TCGA-DU-7294", "TCGA-DU-7294"), ("TCGA-FG-6692", "OtherEXampleFromTCIA")):
        scan = the_scan(find_scans(data_root / "tcga-lgg" / patient / "raw_bet", FOUR))
        assert scan.id == name
        volume = read(scan)
        t1c = nibabel.load(scan.files[1].path)
        assert volume.data.shape == (240, 240, 155, 4)
        np.testing.assert_array_equal(volume.geometry.affine, t1c.affine)
        assert volume.geometry.header.qform_code == t1c.header["qform_code"]
        np.testing.assert_array_equal(volume.data[..., 1], np.asarray(t1c.dataobj, np.float32))


@pytest.mark.data
def test_the_native_series_are_one_scan_on_three_grids(data_root):
    """Names of which none begins alike are one scan, refused for its grids, both differences named."""
    scan = the_scan(find_scans(data_root / "tcga-lgg" / "TCGA-FG-6692" / "native", FOUR))
    assert scan.id == "TCGA-FG-6692"
    assert [file.path.name.rsplit("_", 1)[1] for file in scan.files] == [
        f"{word}.nii.gz" for word in ("t1", "t1c", "t2", "fla")
    ]
    with pytest.raises(ScanRefused) as caught:
        read(scan)
    assert caught.value.code == "E_GEOMETRY_MISMATCH"
    for word in ("_t2.nii.gz", "_fla.nii.gz", "_t1c.nii.gz", "224x256x26", "208x256x26", "mm away"):
        assert word in str(caught.value)


@pytest.mark.data
def test_real_folders_of_bare_names(data_root):
    """Three patients of BraTS 2013 have T1c, FLAIR and a truth; their brain mask is neither."""
    found = find_scans(data_root / "deepmedic-brats2013", TWO)
    assert [scan.id for scan in found.scans] == [f"brats_2013_pat000{n}_1" for n in (1, 2, 6)]
    assert {scan.truth.name for scan in found.scans} == {"OTMultiClass.nii.gz"}
    assert read(found.scans[0]).data.shape == (240, 240, 155, 2)
    refused = find_scans(data_root / "deepmedic-brats2013", FOUR).refused
    assert {error.code for error in refused.values()} == {"E_MODALITY_MISSING"}
