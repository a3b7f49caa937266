"""Damaged and hostile models: none is opened, and no engine sees the graph."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from hostile.graphs import HOSTILE

from torture.children import by_code, survey
from torture.rows import Row, Setup

__all__ = ["flips", "graphs", "keras_files"]


def flips(setup: Setup) -> Iterator[Row]:
    """One bit anywhere in a signed bundle: refused, whichever file it is in."""
    from brainseg_runtime.bundle import Bundle, sign_bundle
    from brainseg_runtime.errors import BundleInvalid
    from brainseg_runtime.signature import make_keys

    folder = shutil.copytree(setup.bundle, setup.place / "bundle")
    make_keys(setup.place / "key.pem", setup.place / "key.pub.pem")
    sign_bundle(folder, setup.place / "key.pem")
    files = sorted(folder.iterdir())
    rng, count, refused = np.random.default_rng(8), setup.count(1_000, 30), Counter[str]()
    for n in range(count):
        path = files[n % len(files)]
        good = path.read_bytes()
        bad = bytearray(good)
        bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
        path.write_bytes(bad)
        try:
            Bundle.open(folder, setup.place / "key.pub.pem")
        except BundleInvalid as error:
            refused[error.code] += 1
        else:
            refused["opened"] += 1
        path.write_bytes(good)
    Bundle.open(folder, setup.place / "key.pub.pem")
    words = ", ".join(f"{number} {code}" for code, number in refused.most_common())
    yield Row("one bit flipped in a signed bundle", f"{count:,}", words, not refused["opened"])


def graphs(setup: Setup) -> Iterator[Row]:
    """Each hostile graph ends in its code; what ONNX Runtime alone does with the same bytes."""
    from brainseg_runtime.graph import check

    trials = ((code, partial(check, make())) for code, make in HOSTILE.values())
    yield by_code("ONNX graphs made by hand", trials)
    if setup.share < 0.02:  # one of them hangs until it is given up: too long for the suite
        return
    found = survey("torture.bundles:onnxruntime", 0, len(HOSTILE))
    words = ", ".join(f"{number} {word}" for word, number in found.most_common())
    yield Row("the same graphs through ONNX Runtime alone, as a file", str(len(HOSTILE)), words, None)


def onnxruntime() -> Callable[[int], str]:
    """Load the nth hostile graph and run it once, in a folder where what it asks for is there."""
    import onnxruntime

    folder = tempfile.TemporaryDirectory()
    place = Path(folder.name, "a", "b")
    place.mkdir(parents=True)
    secret = place.parent / "secret.bin"
    secret.write_bytes(np.zeros(12, "f4").tobytes())
    (place / "hard.bin").hardlink_to(secret)
    (place / "link.bin").symlink_to(secret)
    names = list(HOSTILE)

    def one(n: int, _: object = folder) -> str:
        path = place / "model.onnx"
        path.write_bytes(HOSTILE[names[n]][1]())
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        try:
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception:  # noqa: BLE001
            return "refused"
        try:
            session.run(None, {session.get_inputs()[0].name: np.zeros((1, 4, 4, 4, 4), np.float32)})
        except Exception:  # noqa: BLE001
            return "loaded, then failed"
        return "computed"

    return one


def keras_files(setup: Setup) -> Iterator[Row]:
    """Nothing in a Keras file is executed, and older formats are not opened."""
    from brainseg_export.model import load
    from brainseg_runtime.errors import BundleInvalid
    from hostile.keras_models import HOSTILE as MODELS

    right = 0
    for n, make in enumerate(MODELS.values()):
        folder, marker = setup.place / f"keras-{n}", setup.place / "marker"
        folder.mkdir()
        path = make(folder, marker)
        marker.unlink(missing_ok=True)
        try:
            load(path)
        except BundleInvalid as error:
            right += error.code == "E_MODEL" and not marker.exists()
    found = f"{right} refused with nothing executed"
    yield Row("Keras files made by hand", str(len(MODELS)), found, right == len(MODELS))
