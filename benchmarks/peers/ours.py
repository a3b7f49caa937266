"""Our side of the comparison: one scan, file to file, whenever a line comes in."""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from brainseg_runtime import find_scans, load, read, write


def main() -> None:
    """Arguments: scan, bundle, threads."""
    folder, bundle, threads = sys.argv[1:]
    with load(bundle, "openvino", threads=int(threads)) as segmenter, tempfile.TemporaryDirectory() as out:
        (scan,) = find_scans([Path(folder)], segmenter.spec).scans
        for _ in sys.stdin:
            clock = [time.perf_counter()]
            volume = read(scan)
            clock.append(time.perf_counter())
            segmentation = segmenter.segment(volume)
            clock.append(time.perf_counter())
            write(segmentation, out)
            clock.append(time.perf_counter())
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
            seconds = {
                "read": clock[1] - clock[0],
                "compute": clock[2] - clock[1],
                "write": clock[3] - clock[2],
            }
            print(json.dumps({**seconds, "total": clock[3] - clock[0], "peak_mb": peak}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
