"""What the comparison runs on: a bundle ``full`` of the full-size ``s2d``, and a scan of BraTS' size.

The network is trained for one step: speed does not depend on weights. Its masks are noise, which takes us a
little longer to write than a lesion would.
"""

import subprocess
import sys
from pathlib import Path

from benchmarks.brain import write_scan

RECIPE = 'base = "glioma"\nname = "full"\n[training]\nsteps = 1\nvalidate_every = 1\nwarmup = 0\nema = 0.0\n'


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


if __name__ == "__main__":
    main()
