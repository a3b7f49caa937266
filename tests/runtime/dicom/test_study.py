"""Which series is which modality: what agrees is taken, what does not is refused with its reasons."""

import os
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from brainseg_runtime.dicom.rules import load_rules
from brainseg_runtime.dicom.series import pseudonym
from brainseg_runtime.dicom.study import explain, find_studies
from brainseg_runtime.errors import CODES, BrainsegError, ScanRefused, UsageRefused
from dicoms import ENHANCED, Grid, Made, save, series, study, truth, uid, write
from hostile.dicom import ARCHIVES, FILES, archive_of
from toys import toy_spec

RULES = load_rules()
SPEC = toy_spec()


def found(folder, spec=SPEC, **options):
    return find_studies([folder], spec, RULES, **options)


def spare(*names):
    """A model that can do without some modalities."""
    return replace(SPEC, modalities=tuple(replace(m, optional=m.name in names) for m in SPEC.modalities))


def the_refusal(folder, **options):
    result = found(folder, **options)
    assert result.scans == ()
    (refusal,) = result.refused.values()
    assert "CANARY" not in str(refusal)
    return refusal


@pytest.mark.parametrize("enhanced", [False, True], ids=["classic", "enhanced"])
def test_four_series_become_one_volume(folder, enhanced):
    """Each channel holds its own modality, at its own place in the patient."""
    save(study(enhanced=enhanced), folder)
    (scan,) = found(folder).scans
    volume = scan.read()
    index = np.stack(np.meshgrid(*map(np.arange, volume.geometry.shape), indexing="ij"), axis=-1)
    ras = index @ volume.geometry.affine[:3, :3].T + volume.geometry.affine[:3, 3]
    expected = truth(ras * [-1, -1, 1])
    for c, gain in enumerate((1.0, 1.3, 0.8, 1.1)):
        assert np.abs(volume.data[..., c] - gain * expected).max() <= 0.5
    assert volume.record["resampled"] == {}
    assert [source.modality for source in volume.sources] == ["t1", "t1c", "t2", "flair"]


def test_a_zip_is_read_as_its_folder_is(folder, tmp_path):
    """The same voxels, the same identity."""
    save(study(), folder)
    with zipfile.ZipFile(tmp_path / "study.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in folder.iterdir():
            archive.write(path, f"deep/er/{path.name}")
    (one,), (other,) = found(folder).scans, found(tmp_path / "study.zip").scans
    assert one.id == other.id
    assert one.identity() == other.identity()
    np.testing.assert_array_equal(one.read().data, other.read().data)


def test_studies_in_one_folder_are_told_apart(folder):
    """Each is a scan; names and file names mean nothing."""
    save(study(study="a"), folder / "x")
    save(study(study="b", patient="CANARY^Other"), folder / "y")
    scans = found(folder).scans
    assert len({scan.id for scan in scans}) == 2
    assert all("CANARY" not in scan.id and scan.id.startswith("study-") for scan in scans)


def with_series(*more, without=(), **changes):
    """The usual study, with some series replaced, left out, or added."""
    datasets = [d for d in study(**changes) if not any(Made(m).modality == _modality(d) for m in without)]
    for made in more:
        datasets += series(made)
    return datasets


def _modality(dataset):
    return {3: "t1", 9: "t1c", 4: "t2", 5: "flair"}[int(dataset.SeriesNumber)]


def renamed(modality, **header):
    return {modality: Made(modality).with_header(**header)}


CHOICES = {
    "a localizer beside": lambda: with_series(
        Made("t1", grid=Grid(slices=16), name="loc").with_header(SeriesDescription="localizer")
    ),
    "diffusion beside": lambda: with_series(
        Made("t2", name="dwi").with_header(SeriesDescription="ep2d_diff_b1000", EchoTime=89)
    ),
    "a derived map beside": lambda: with_series(
        Made("t1c", name="sub").with_header(ImageType=["DERIVED", "PRIMARY", "SUB"])
    ),
    "too few slices beside": lambda: with_series(Made("t1c", name="few", grid=Grid(slices=9))),
    "T1-FLAIR is a T1": lambda: with_series(
        **renamed("t1", SeriesDescription="Ax T1 FLAIR", RepetitionTime=2200, EchoTime=9, InversionTime=860)
    ),
    "MPRAGE is a T1": lambda: with_series(
        **renamed("t1", SeriesDescription="mprage_sag", RepetitionTime=1900, EchoTime=2.97, InversionTime=900)
    ),
    "contrast by the header alone": lambda: with_series(**renamed("t1c", SeriesDescription="t1_se_tra")),
    "contrast by the words alone": lambda: with_series(**renamed("t1c", ContrastBolusAgent=None)),
    "agent copied to the others": lambda: with_series(
        t2=Made("t2").with_header(ContrastBolusAgent="Gadovist"),
        flair=Made("flair").with_header(ContrastBolusAgent="Gadovist"),
    ),
    "agent that says none": lambda: with_series(**renamed("t1", ContrastBolusAgent="NONE")),
    "t1 that says without": lambda: with_series(**renamed("t1", SeriesDescription="T1 SE without contrast")),
}


@pytest.mark.parametrize("make", CHOICES.values(), ids=CHOICES.keys())
def test_the_right_series_are_taken(folder, make):
    """Four are right and found; what is beside them is left."""
    save(make(), folder)
    assert len(found(folder).scans) == 1, found(folder).refused
    (scan,) = found(folder).scans
    numbers = {one.modality: one.series.number for one in scan.chosen}
    assert numbers == {"t1": "3", "t1c": "9", "t2": "4", "flair": "5"}
    voxels = scan.read().data
    gains = voxels.mean(axis=(0, 1, 2)) / voxels[..., 0].mean()
    np.testing.assert_allclose(gains, [1.0, 1.3, 0.8, 1.1], atol=0.02)


REFUSALS = {
    "no flair": (lambda: with_series(without=("flair",)), "E_MODALITY_MISSING"),
    "no contrast said of either T1": (
        lambda: with_series(
            t1c=Made("t1c").with_header(ContrastBolusAgent=None, SeriesDescription="t1_se_tra")
        ),
        "E_SERIES_AMBIGUOUS",
    ),
    "agent in a series called native": (
        lambda: with_series(
            t1=Made("t1").with_header(ContrastBolusAgent="Dotarem", SeriesDescription="t1 native")
        ),
        "E_SERIES_CONTRADICTORY",
    ),
    "a T1 called T2": (
        lambda: with_series(t1=Made("t1").with_header(SeriesDescription="t2_tse_tra")),
        "E_SERIES_CONTRADICTORY",
    ),
    "a T2 called FLAIR": (
        lambda: with_series(
            flair=Made("t2", name="f").with_header(SeriesDescription="flair_tra", SeriesNumber=5)
        ),
        "E_SERIES_CONTRADICTORY",
    ),
    "a FLAIR called T1c": (
        lambda: with_series(
            t1c=Made("flair", name="f").with_header(SeriesDescription="t1 post gad", SeriesNumber=9)
        ),
        "E_SERIES_CONTRADICTORY",
    ),
    "called nothing": (
        lambda: with_series(t2=Made("t2").with_header(SeriesDescription="series 4")),
        "E_MODALITY_MISSING",
    ),
    "measured with nothing": (
        lambda: with_series(t2=Made("t2").with_header(RepetitionTime=None, EchoTime=None)),
        "E_MODALITY_MISSING",
    ),
    "two equal T1c": (lambda: with_series(Made("t1c", name="again")), "E_SERIES_AMBIGUOUS"),
    "two patients": (
        lambda: with_series(flair=Made("flair", patient="CANARY^Other")),
        "E_PATIENTS_MIXED",
    ),
    "two frames of reference": (
        lambda: with_series(flair=Made("flair", frame="other")),
        "E_FRAME_OF_REFERENCE",
    ),
    "two grids": (lambda: with_series(flair=Made("flair", grid=Grid(slices=20))), "E_GEOMETRY_MISMATCH"),
    "a slice of the T1c missing": (
        lambda: [d for d in study() if (_modality(d), d.InstanceNumber) != ("t1c", 7)],
        "E_SERIES_IRREGULAR",
    ),
    "a CT": (
        lambda: series(Made("t1").with_header(Modality="CT", SOPClassUID="1.2.840.10008.5.1.4.1.1.2")),
        "E_NOT_MR",
    ),
}


@pytest.mark.parametrize(("make", "code"), REFUSALS.values(), ids=REFUSALS.keys())
def test_what_is_ambiguous_or_contradictory_is_refused(folder, make, code):
    """Each with its code, and without a word from the header."""
    save(make(), folder)
    refusal = the_refusal(folder)
    assert refusal.code == code
    assert code in CODES


def test_an_optional_series_may_lack(folder):
    """A study without T2 is read with a channel of zeros where the model can do without, and says so."""
    save(with_series(without=("t2",)), folder)
    assert the_refusal(folder).code == "E_MODALITY_MISSING"
    (scan,) = found(folder, spec=spare("t1", "t2")).scans
    volume = scan.read()
    assert volume.absent == ("t2",)
    assert volume.data[..., 2].max() == 0
    assert volume.data[..., [0, 1, 3]].max(axis=(0, 1, 2)).min() > 0


def test_series_of_two_frames_are_registered_where_asked(folder):
    """A patient who got up in between: refused, until ``--register`` moves the series onto one."""
    save(with_series(flair=Made("flair", frame="other")), folder)
    assert the_refusal(folder).code == "E_FRAME_OF_REFERENCE"
    (scan,) = found(folder, resample_to="t1c", register=True).scans
    assert scan.identity()["register"]
    assert scan.identity() != replace(scan, register=False).identity()


def test_what_contradicts_itself_is_not_taken_for_absent(folder):
    """A T1 whose description says T2 may be the T2 that seems to lack."""
    save(with_series(t1=Made("t1").with_header(SeriesDescription="t2_tse_tra"), without=("t2",)), folder)
    refused = found(folder, spec=spare("t1", "t2")).refused
    assert [refusal.code for refusal in refused.values()] == ["E_SERIES_CONTRADICTORY"]


def test_of_two_candidates_the_better_is_taken_and_told(folder):
    """A volume acquisition goes before slices, thin before thick; the record says so."""
    thin = Made("t1c", name="thin", grid=Grid(slice_mm=2.0, slices=24)).with_header(SeriesNumber=11)
    save(with_series(thin), folder)
    assert the_refusal(folder).code == "E_GEOMETRY_MISMATCH"  # the thin one lies on a grid of its own
    (scan,) = found(folder, resample_to="t1").scans
    (t1c,) = [one for one in scan.chosen if one.modality == "t1c"]
    assert t1c.series.number == "11"
    assert "preferred among 2" in t1c.why


def test_series_on_other_grids_are_resampled_when_asked(folder):
    """Every channel is the phantom at the places of the chosen grid, and the record names what moved."""
    other = Grid(rows=60, columns=60, slices=30, row_mm=1.1, column_mm=1.2, slice_mm=2.0, degrees=(3, 5, -4))
    save(with_series(flair=Made("flair", grid=other), t2=Made("t2", grid=other)), folder)
    assert the_refusal(folder).code == "E_GEOMETRY_MISMATCH"
    (scan,) = found(folder, resample_to="t1c").scans
    volume = scan.read()
    assert set(volume.record["resampled"]) == {"t2", "flair"}
    assert volume.record["reference"] == "t1c"
    index = np.stack(np.meshgrid(*map(np.arange, volume.geometry.shape), indexing="ij"), axis=-1)
    ras = index @ volume.geometry.affine[:3, :3].T + volume.geometry.affine[:3, 3]
    expected = 1.1 * truth(ras * [-1, -1, 1])
    inner = (slice(12, -12), slice(10, -10), slice(6, -6))
    # Linear interpolation of the spheres' soft edges on voxels of 1 to 2 mm.
    assert np.abs(volume.data[..., 3] - expected)[inner].max() < 30
    assert np.abs(volume.data[..., 3] - expected)[inner].mean() < 1
    (scan,) = found(folder, resample_to="flair").scans
    assert scan.read().geometry.shape == (60, 60, 30)
    with pytest.raises(UsageRefused):
        found(folder, resample_to="pd")


def test_a_series_that_covers_too_little_is_refused(folder):
    """Half a head cannot stand for a head, resampled or not."""
    apart = Grid(centre=(3.0, -4.0, 62.0))
    save(with_series(flair=Made("flair", grid=apart)), folder)
    (scan,) = found(folder, resample_to="t1c").scans
    with pytest.raises(ScanRefused) as refused:
        scan.read()
    assert refused.value.code == "E_GEOMETRY_MISMATCH"


def test_copies_count_once_and_conflicts_are_refused(folder):
    """The same instance twice is one; two of one identifier are a fault that nobody may decide."""
    datasets = study()
    save(datasets, folder / "a")
    save(datasets, folder / "b", seed=3)
    assert len(found(folder).scans) == 1
    datasets[0].PixelData = bytes(len(datasets[0].PixelData))
    save(datasets[:1], folder / "c")
    assert the_refusal(folder).code == "E_DICOM_DOUBLED"


def test_explain_tells_every_series_and_why(folder):
    """All series, their descriptions, what they were taken for, and what becomes of the study."""
    save(with_series(Made("t1c", name="again")), folder)
    (folder / "notes.txt").write_text("not DICOM")
    text = explain([folder], RULES, SPEC)
    assert text.count("t1_se_tra post gad") == 2
    assert "rule short-tr-short-te" in text
    assert "E_SERIES_AMBIGUOUS" in text
    assert "notes.txt: not a DICOM file" in text


def test_a_site_replaces_the_rules(folder, tmp_path):
    """Other data, other choice; what is no table of rules is refused with its fault."""
    from importlib.resources import files

    text = (files("brainseg_runtime.dicom") / "rules.toml").read_text()
    save(with_series(t2=Made("t2").with_header(SeriesDescription="series 4")), folder)
    own = tmp_path / "own.toml"
    own.write_text(text.replace("silent_description = false", "silent_description = true"))
    rules = load_rules(own)
    (scan,) = find_studies([folder], SPEC, rules).scans
    assert scan.rules["sha256"] == rules.sha256 != RULES.sha256
    for damage in (
        text[:300],
        text.replace("format = 1", "format = 9"),
        text.replace("\\b(loc", "\\b(((loc"),
    ):
        own.write_text(damage)
        with pytest.raises(UsageRefused, match="E_RULES"):
            load_rules(own)
    with pytest.raises(UsageRefused, match="E_RULES"):
        load_rules(tmp_path / "none.toml")


@pytest.mark.parametrize(("write_file", "code"), FILES.values(), ids=FILES.keys())
def test_a_hostile_file_is_refused(folder, write_file, code):
    """By a code, whatever stands before a data set that inflates without end."""
    folder.mkdir()
    (folder / "IM00000").write_bytes(write_file())
    assert the_refusal(folder).code == code


@pytest.mark.parametrize(("write_archive", "code"), ARCHIVES.values(), ids=ARCHIVES.keys())
def test_a_hostile_archive_is_refused(tmp_path, write_archive, code):
    """By what its directory claims, before anything is inflated; nothing is ever unpacked."""
    path = write_archive(tmp_path / "a.zip")
    with pytest.raises(BrainsegError) as refused:
        found(path)
    assert refused.value.code == code
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.zip"]


def test_a_damaged_archive_is_refused(folder, tmp_path):
    """A flipped bit in a member does not pass its checksum."""
    save(series(Made())[:2], folder)
    path = archive_of(tmp_path / "a.zip", [(p.name, p.read_bytes()) for p in folder.iterdir()])
    data = bytearray(path.read_bytes())
    data[200] ^= 4
    path.write_bytes(data)
    assert the_refusal(path).code == "E_ZIP"


def undecodable(element):
    """An identifier of a kind that there is not."""

    def damage(path, outside):
        data = path.read_bytes()
        assert element + b"UI" in data
        path.write_bytes(data.replace(element + b"UI", element + b"QI"))

    return damage


def link(path, outside):
    path.unlink()
    path.symlink_to(outside)


def fifo(path, outside):
    path.unlink()
    os.mkfifo(path)


BROKEN = {
    "a series that cannot be decoded": (undecodable(b"\x20\0\x0e\0"), "E_DICOM_DAMAGED"),
    "a study that cannot be decoded": (undecodable(b"\x20\0\x0d\0"), "E_DICOM_DAMAGED"),
    "a link out of the folder": (link, "E_NOT_FILE"),
    "a fifo": (fifo, "E_NOT_FILE"),
}


@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize("apart", [True, False], ids=["a folder each", "one folder"])
def test_a_file_that_cannot_be_read_refuses_its_own_study_alone(folder, tmp_path, fault, apart):
    """Its header tells its study, else its folder, else it is refused by itself; the other study is read."""
    damage, code = BROKEN[fault]
    (tmp_path / "CANARY-outside").write_bytes(b"secret")
    for name in ("a", "b"):
        for n, dataset in enumerate(study(study=name, grid=Grid(rows=24, columns=20))):
            place = folder / name if apart else folder
            place.mkdir(parents=True, exist_ok=True)
            write(dataset, place / f"CANARY-{name}{n:02}")
    one, other = (pseudonym("study", uid("study", name)) for name in ("a", "b"))
    victim = next(folder.rglob("CANARY-b07"))
    damage(victim, tmp_path / "CANARY-outside")
    result = found(folder)
    told = apart or fault == "a series that cannot be decoded"
    refused = other if told else "file-00072"
    assert {name: refusal.code for name, refusal in result.refused.items()}[refused] == code
    assert one in {scan.id for scan in result.scans}
    assert other not in {scan.id for scan in result.scans}
    assert "CANARY" not in str(result.refused)
    assert f"CANARY-b07: {refused} is refused for it, {code}" in explain([folder], RULES)


def test_the_agent_of_an_enhanced_series_is_coded(folder):
    """An Enhanced T1c names its agent by a code; without a word of contrast it is still a T1c."""
    save(study(enhanced=True, **renamed_enhanced()), folder)
    (scan,) = found(folder).scans
    assert all(str(i.header.SOPClassUID) == ENHANCED for one in scan.chosen for i in one.series.instances)
    assert next(one for one in scan.chosen if one.modality == "t1c").series.number == "9"


def renamed_enhanced():
    return {"t1c": Made("t1c", enhanced=True).with_header(SeriesDescription="t1_se_tra")}
