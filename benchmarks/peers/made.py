"""What the comparison runs on: a bundle ``full`` of the full-size ``s2d``, and a scan of BraTS' size.

The network is trained for one step: speed does not depend on weights. Its masks are noise, which takes us a
little longer to write than a lesion would.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
from brainseg_runtime.geometry import Geometry
from brainseg_runtime.nifti import write_image
from brainseg_trainer.synthetic import synthesise

RECIPE = 'base = "glioma"\nname = "full"\n[training]\nsteps = 1\nvalidate_every = 1\nwarmup = 0\nema = 0.0\n'
SUFFIXES = ("t1n", "t1c", "t2w", "t2f")


def main() -> None:
    """Arguments: where to write ``full/`` (a bundle) and ``scan/``; a data set to take a step on."""
    out, data = map(Path, sys.argv[1:])
    out.mkdir(parents=True, exist_ok=True)
    write_scan(out / "scan")
    (out / "full.toml").write_text(RECIPE)
    run, program = out / "run", Path(sys.executable)
    fit = [program.with_name("brainseg-train"), "fit", data, "--run", run, "--config", out / "full.toml"]
    subprocess.run([str(part) for part in fit], check=True)
    export = [program.with_name("brainseg-export"), "bundle", run, "-o", out / "full"]
    subprocess.run([str(part) for part in export], check=True)


def write_scan(folder: Path) -> None:
    """A synthetic scan stretched to BraTS' grid, 240x240x155 voxels of 1 mm, four int16 ``.nii.gz``."""
    source = synthesise(seed=7)
    shape = (240, 240, 155)
    nearest = np.ix_(*(np.arange(n) * o // n for n, o in zip(shape, source.data.shape[:3], strict=True)))
    geometry = Geometry(shape, np.array([[-1, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1.0]]))
    folder.mkdir(parents=True, exist_ok=True)
    for c, suffix in enumerate(SUFFIXES):
        write_image(folder / f"synthetic-{suffix}.nii.gz", source.data[..., c][nearest], geometry)


if __name__ == "__main__":
    main()
