"""Our side of the comparison: one scan, file to file, whenever a line comes in."""

import json
import resource
import sys
import time
from pathlib import Path

from brainseg_runtime import Bundle, Segmenter, find_scans, load, read, write


def keras(bundle: Path) -> Segmenter:
    """The Keras model that the bundle beside it was made of, through the same pipeline."""
    from brainseg_export.model import keras_engine, to_logits
    from brainseg_export.model import load as load_model

    spec = Bundle.open(bundle).spec
    return Segmenter(spec, keras_engine(to_logits(load_model(bundle.parent / "run" / "model.keras"), spec)))


def tf2onnx(bundle: Path, threads: int) -> Segmenter:
    """The graph that tf2onnx makes of that model, as it is, in onnxruntime."""
    from brainseg_runtime.engines.ort import OrtEngine

    spec = Bundle.open(bundle).spec
    return Segmenter(
        spec, OrtEngine((bundle.parent / "tf2onnx.onnx").read_bytes(), spec, "fp32", threads=threads)
    )


def opened(form: str, bundle: Path, threads: int) -> Segmenter:
    """What answers in one of our forms."""
    if form == "keras":
        return keras(bundle)
    if form == "tf2onnx":
        return tf2onnx(bundle, threads)
    return load(bundle, form, threads=threads)


def main() -> None:
    """Arguments: form, scan, bundle, threads, a folder for the result."""
    form, folder, bundle, threads, out = sys.argv[1:]
    with opened(form, Path(bundle), int(threads)) as segmenter:
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
