"""Files in the documented layout of figshare 1512427 (MATLAB v7.3), made up: heads, tumours, folds."""

import io

import h5py
import numpy as np
from brainseg_trainer.figshare.slices import polygon_mask


def picture(plane, height, side=512):
    """A head in one of three planes, ``height`` slices up: an outline and a few soft blobs."""
    rows, columns = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    rng = np.random.default_rng(plane)
    long, wide = [(0.9, 0.5), (0.45, 0.95), (0.6, 0.6)][plane]
    head = (rows / (long - 0.02 * height)) ** 2 + (columns / wide) ** 2 < 1
    blobs = sum(
        rng.uniform(-1, 1) * np.exp(-((rows - r) ** 2 + (columns - c) ** 2) / 0.03)
        for r, c in rng.uniform(-0.6, 0.6, (8, 2))
    )
    grain = np.random.default_rng([plane, height]).normal(0, 30, rows.shape)
    return np.where(head, 1500 + 1200 * blobs + grain, 0).clip(0, 12000).astype(np.int16)


def circle(radius, side=512):
    """A tumour's outline in MATLAB's coordinates: column and row, the first pixel's centre at 1, 1."""
    turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    return side / 512 * np.stack([300 + radius * np.cos(turn), 200 + 0.7 * radius * np.sin(turn)], axis=-1)


def mat(patient="112649", kind=1, image=None, border=None, mask=None, **changes):
    """The bytes of a file as MATLAB's v7.3 has it: a user block, everything transposed, text as codes."""
    image = picture(0, 0) if image is None else image
    border = circle(40, image.shape[0]) if border is None else border
    mask = polygon_mask(border, image.shape) if mask is None else mask
    values = {
        "PID": np.array([[ord(c)] for c in patient], np.uint16),
        "image": image.T,
        "label": np.array([[kind]], np.float64),
        "tumorBorder": border.reshape(1, -1),
        "tumorMask": mask.T.astype(np.uint8),
        **changes,
    }
    content = io.BytesIO()
    with h5py.File(content, "w", userblock_size=512) as file:
        for name, value in values.items():
            if value is not None:
                file.create_dataset(f"cjdata/{name}", data=value, compression="gzip", compression_opts=1)
    raw = bytearray(content.getvalue())
    raw[:19] = b"MATLAB 7.3 MAT-file"
    return bytes(raw)


def cvind(changes=(), size=3064):
    """The bytes of ``cvind.mat``: slices 1 to 6 in fold 2, all others in fold 1."""
    folds = np.ones((1, size))
    folds[0, :6] = 2
    for number, fold in changes:
        folds[0, number - 1] = fold
    content = io.BytesIO()
    with h5py.File(content, "w", userblock_size=512) as file:
        file["cvind"] = folds
    return content.getvalue()


def write_download(folder):
    """Two patients: one with three slices in each of two planes, one with a lone slice and two of 256."""
    folder.mkdir(exist_ok=True)
    for number in range(1, 7):
        plane, height = divmod(number - 1, 3)
        (folder / f"{number}.mat").write_bytes(mat("MR 01", 2, picture(plane, height)))
    (folder / "7.mat").write_bytes(mat("100360", 3, picture(2, 0)))
    for number in (955, 956):
        (folder / f"{number}.mat").write_bytes(mat("100360", 3, picture(1, number - 955, 256)))
    (folder / "cvind.mat").write_bytes(cvind())
    (folder / "README.txt").write_text("the data set")
    return folder
