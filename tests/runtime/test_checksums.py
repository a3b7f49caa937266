"""What a format cannot tell, a list of checksums tells."""

import hashlib
import json
import subprocess

import numpy as np
import pytest
from brainseg_runtime.checksums import hold, load_checksums
from brainseg_runtime.errors import ScanRefused, UsageRefused
from brainseg_runtime.scans import find_scans
from toys import toy_spec, toy_volume, write_scan


@pytest.fixture
def scans(tmp_path):
    """One scan of plain .nii files, which have no checksum of their own."""
    write_scan(tmp_path / "scans" / "p0", toy_volume(), suffix=".nii")
    return tmp_path / "scans"


def listed(scans, *more):
    lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  p0/{p.name}" for p in (scans / "p0").iterdir()]
    path = scans / "SHA256SUMS"
    path.write_text("\n".join([*lines, *more]) + "\n")
    return path


def only(scans, sums):
    (scan,) = hold(find_scans(scans, toy_spec()), load_checksums(sums)).scans
    return scan


def test_a_scan_as_listed_is_read(scans):
    """Its voxels, its record, its name: those of the scan without a list."""
    (bare,) = find_scans(scans, toy_spec()).scans
    scan = only(scans, listed(scans))
    np.testing.assert_array_equal(scan.read().data, bare.read().data)
    assert (scan.id, scan.identity()) == (bare.id, bare.identity())


def test_the_systems_own_list_is_understood(scans):
    """What sha256sum writes."""
    done = subprocess.run("sha256sum */* > SHA256SUMS", shell=True, cwd=scans, check=False)
    if done.returncode:
        pytest.skip("sha256sum is not installed")
    assert only(scans, scans / "SHA256SUMS").read().scan == "p0"


def test_any_change_of_a_file_is_refused(scans):
    """Every one of 200 flipped bits, also those that a plain .nii is read with in silence."""
    sums = listed(scans)
    path = scans / "p0" / "p0-t2f.nii"
    good, rng, silent = path.read_bytes(), np.random.default_rng(1), 0
    for _ in range(200):
        bad = bytearray(good)
        bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
        path.write_bytes(bad)
        with pytest.raises(ScanRefused, match="E_CHECKSUM"):
            only(scans, sums).read()
        try:
            find_scans(scans, toy_spec()).scans[0].read()
            silent += 1
        except ScanRefused:
            pass
    assert silent > 100


def test_exchanged_files_are_refused(scans):
    """The list says which file is which: two that took each other's names are not what it says."""
    sums = listed(scans)
    one, two = (scans / "p0" / f"p0-{name}.nii" for name in ("t1n", "t1c"))
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    scan = only(scans, sums)
    for ask in (scan.read, scan.identity):
        with pytest.raises(ScanRefused, match="E_CHECKSUM"):
            ask()


def test_a_file_that_is_not_listed_is_refused(scans, tmp_path):
    """An empty line of thought is no list; a list of other files trusts none of these."""
    sums = listed(scans)
    lines = sums.read_text().splitlines()
    sums.write_text("\n".join(lines[1:]) + "\n")
    with pytest.raises(ScanRefused, match="is not on the list"):
        only(scans, sums).read()


@pytest.mark.parametrize("text", ["", "hello\n", "abc  file\n", "0" * 64 + " file\n", json.dumps({})])
def test_what_is_no_list_is_the_users_mistake(tmp_path, text):
    """It is never taken for a list of nothing."""
    (tmp_path / "sums").write_text(text)
    with pytest.raises(UsageRefused, match="E_USAGE"):
        load_checksums(tmp_path / "sums")
    with pytest.raises(UsageRefused, match="E_USAGE"):
        load_checksums(tmp_path / "nowhere")
