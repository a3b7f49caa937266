"""A peer's side of the comparison, run by the peers' own interpreter: one scan whenever a line comes in."""

import json
import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
import torch
from monai.inferers import sliding_window_inference
from monai.networks.nets import DynUNet, SegResNet
from torch import nn
from torch.nn.functional import pad

from benchmarks.peers.s2d import S2d

WORDS = ("t1c", "t1", "t2", "fla")


def s2d(file: Path) -> S2d:
    """Our network with the weights of a file; its logits of an image have to be ours."""
    with np.load(file) as found, torch.inference_mode():
        count = sum(name.startswith("kernel") for name in found)
        network = S2d.of([(found[f"kernel{n}"], found[f"bias{n}"]) for n in range(count)])
        apart = np.abs(network(torch.from_numpy(found["image"])).numpy() - found["logits"]).max()
    if apart > 1e-3:
        raise SystemExit(f"not our network: logits differ by {apart}")
    return network


def segresnet(_: Path) -> nn.Module:
    """The network of MONAI's bundle ``brats_mri_segmentation``."""
    return SegResNet(
        blocks_down=[1, 2, 2, 4], blocks_up=[1, 1, 1], init_filters=16, in_channels=4, out_channels=3
    )


def plain(_: Path) -> nn.Module:
    """nnU-Net's plain U-Net for BraTS: six levels, 32 to 320 filters, instance norm."""
    return DynUNet(
        3, 4, 3, [3] * 6, [1, 2, 2, 2, 2, 2], [2] * 5, filters=[32, 64, 128, 256, 320, 320],
        norm_name="instance", deep_supervision=False,
    )  # fmt: skip


def windows(size, mode="constant"):
    """MONAI's sliding windows."""
    return lambda image, network: sliding_window_inference(image, size, 1, network, overlap=0.5, mode=mode)


def whole(image, network):
    """One pass, padded to a multiple of 32."""
    margins = [m for n in reversed(image.shape[2:]) for m in (0, -n % 32)]
    return network(pad(image, margins))[..., : image.shape[2], : image.shape[3], : image.shape[4]]


PEERS = {
    "monai-bundle": (segresnet, windows((240, 240, 160)), False),
    "monai-128": (segresnet, windows((128,) * 3), False),
    "nnunet-plain": (plain, windows((128,) * 3, "gaussian"), True),
    "torch-s2d": (s2d, whole, True),
}
"""Name -> network, made with the file of our weights; the way that it is run; whether the image is cut."""


def main() -> None:
    """Arguments: peer, scan, threads, a folder for the result, our weights."""
    name, folder, threads, out, weights = sys.argv[1:]
    torch.set_num_threads(int(threads))
    make, run, cropped = PEERS[name]
    torch.manual_seed(0)
    network = make(Path(weights)).eval()
    files = [next(p for p in sorted(Path(folder).iterdir()) if w in _words(p)) for w in WORDS]
    with ThreadPoolExecutor(len(files)) as pool, torch.inference_mode():
        for _ in sys.stdin:
            clock = [time.perf_counter()]
            images = [nibabel.load(path) for path in files]
            data = np.stack(list(pool.map(lambda image: np.asarray(image.dataobj, np.float32), images)))
            clock.append(time.perf_counter())
            labels = _segment(data, network, run, cropped)
            clock.append(time.perf_counter())
            nibabel.save(nibabel.Nifti1Image(labels, images[0].affine), Path(out, "seg.nii.gz"))
            clock.append(time.perf_counter())
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
            seconds = {
                "read": clock[1] - clock[0],
                "compute": clock[2] - clock[1],
                "write": clock[3] - clock[2],
            }
            print(json.dumps({**seconds, "total": clock[3] - clock[0], "peak_mb": peak}), flush=True)  # noqa: T201


def _segment(data, network, run, cropped):
    """Z-score over the voxels that are not 0, network, threshold: (4, I, J, K) -> (I, J, K)."""
    labels = np.zeros(data.shape[1:], np.uint8)
    box = (slice(None),) * 3
    if cropped:
        brain = np.nonzero((data != 0).any(axis=0))
        box = tuple(slice(int(hit.min()), int(hit.max()) + 1) for hit in brain)
    image = np.ascontiguousarray(data[(slice(None), *box)])
    for channel in image:
        inside = channel != 0
        channel[inside] = (channel[inside] - channel[inside].mean()) / channel[inside].std()
    regions = (run(torch.from_numpy(image)[None], network)[0] > 0).numpy()
    for value, region in zip((2, 1, 3), regions, strict=True):
        labels[box][region] = value
    return labels


def _words(path: Path) -> list[str]:
    """The words of a file's name; those of BraTS 2023 as the older ones."""
    newer = {"t1n": "t1", "t2w": "t2", "t2f": "fla", "flair": "fla", "t1ce": "t1c"}
    words = path.name.lower().split(".")[0].replace("-", "_").split("_")
    return [newer.get(word, word) for word in words]


if __name__ == "__main__":
    main()
