"""Images of one head that say to lie elsewhere are moved back, and only where that was asked for."""

from pathlib import Path

import numpy as np
import pytest
from brainseg_runtime.errors import ScanRefused
from brainseg_runtime.geometry import Geometry
from brainseg_runtime.inputs import find
from brainseg_runtime.nifti import read_image, write_image
from brainseg_runtime.registration import register
from brainseg_runtime.scans import find_scans
from toys import toy_spec

pytest.importorskip("SimpleITK", reason="SimpleITK is not installed (CI installs it)")

SHAPE, SPACING = (72, 88, 64), (2.0, 2.0, 2.5)
GRID = Geometry(SHAPE, np.array([[-2.0, 0, 0, 72], [0, -2, 0, 88], [0, 0, 2.5, -80], [0, 0, 0, 1]]))
WORDS = {"t1": 1, "t1c": 2, "t2": 3, "flair": 4}


def head(contrast: int) -> np.ndarray:
    """A head of many parts without symmetry, of other brightness on every contrast, 0 around it."""
    i, j, k = np.indices(SHAPE)
    mm = np.stack([(i - 36) * 2.0, (j - 44) * 2.0, (k - 32) * 2.5], axis=-1)
    places, looks = np.random.default_rng(0), np.random.default_rng(contrast)
    image = np.zeros(SHAPE, np.float32)
    image[np.square(mm / (58, 74, 62)).sum(axis=-1) < 1] = 500
    inside = image > 0
    for _ in range(40):
        centre, radii = places.uniform(-45, 45, 3), places.uniform(8, 25, 3)
        image[inside & (np.square((mm - centre) / radii).sum(axis=-1) < 1)] = looks.uniform(150, 1200)
    return np.where(inside, image + looks.normal(0, 15, SHAPE), 0).astype(np.float32)


def motion(degrees: float, mm: float, seed: int) -> np.ndarray:
    """A rigid motion about an axis and along a direction of chance (Rodrigues)."""
    rng = np.random.default_rng(seed)
    axis, way = (v / np.linalg.norm(v) for v in rng.normal(size=(2, 3)))
    cross = np.cross(np.eye(3), axis)
    angle = np.radians(degrees)
    matrix = np.eye(4)
    matrix[:3, :3] += np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    matrix[:3, 3] = mm * way
    return matrix


def error_mm(grid: Geometry, found: np.ndarray, meant: np.ndarray) -> float:
    """How far apart two motions bring the voxels within 70 mm of a grid's middle, at most."""
    middle = grid.corners().mean(axis=0)
    ball = middle + 70 * np.array(
        [v / np.linalg.norm(v) for v in np.random.default_rng(0).normal(size=(50, 3))]
    )
    points = np.c_[ball, np.ones(50)]
    return float(np.linalg.norm((points @ (found - meant).T)[:, :3], axis=1).max())


@pytest.mark.parametrize(("degrees", "mm", "seed"), [(0, 0, 0), (4, 6, 1), (12, 25, 2), (20, 10, 3)])
def test_a_known_motion_is_found_back(degrees, mm, seed):
    """Another contrast of the same head, moved, comes to lie where it was within a millimetre."""
    moved = motion(degrees, mm, seed)
    found = register(head(4), GRID.moved(moved), head(2), GRID, "flair")
    assert error_mm(GRID.moved(moved), found.matrix, np.linalg.inv(moved)) < 1.0
    again = register(head(4), GRID.moved(moved), head(2), GRID, "flair")
    np.testing.assert_array_equal(found.matrix, again.matrix)


@pytest.mark.data
@pytest.mark.parametrize("word", ["t1", "t2", "fla"])
def test_real_contrasts_are_found_back(data_root, word):
    """Three contrasts of a patient, registered by others, moved by 8 degrees and 15 mm."""
    folder = data_root / "tcga-lgg" / "TCGA-FG-6692" / "raw_bet"
    fixed, image = (read_image(folder / f"OtherEXampleFromTCIA_{w}_bet.nii.gz") for w in ("t1c", word))
    moved = motion(8, 15, 5)
    grid = image.geometry.moved(moved)
    found = register(image.data, grid, fixed.data, fixed.geometry, word)
    assert error_mm(grid, found.matrix, np.linalg.inv(moved)) < 1.0


def test_what_is_far_away_is_refused():
    """No head lies half a metre from another series of its own."""
    far = np.eye(4)
    far[0, 3] = 500.0
    with pytest.raises(ScanRefused, match=r"E_REGISTRATION.*500 mm"):
        register(head(4), GRID.moved(far), head(2), GRID, "flair")


def written(folder: Path, moved: np.ndarray) -> Path:
    for word, contrast in WORDS.items():
        grid = GRID.moved(moved) if word == "flair" else GRID
        write_image(folder / f"P1_{word}.nii.gz", head(contrast), grid)
    return folder


def test_a_scan_is_registered_where_asked(tmp_path):
    """Refused as it is; registered it lies on the reference's grid, and the record says what was moved."""
    spec = toy_spec()
    folder = written(tmp_path, motion(6, 9, 1))
    (scan,) = find_scans(folder, spec).scans
    with pytest.raises(ScanRefused, match="E_GEOMETRY_MISMATCH"):
        scan.read()
    (scan,) = find([folder], spec, "nifti", register=True).scans
    volume = scan.read()
    assert volume.geometry.distance(GRID) < 1e-3
    assert volume.record["register"]
    assert set(volume.record["resampled"]) == {"t1", "t2", "flair"}
    told = volume.record["resampled"]["flair"]["registered"]
    assert told["degrees"] == pytest.approx(6, abs=0.5)
    flair = volume.data[..., [m.name for m in spec.modalities].index("flair")]
    inside = head(4) > 0
    assert np.corrcoef(flair[inside], head(4)[inside])[0, 1] > 0.9
    assert scan.identity()["register"]
