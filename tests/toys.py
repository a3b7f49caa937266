"""Small models and scans that the tests share: analytic, so that the right answer is known."""

import hashlib
from collections.abc import Callable, Iterable
from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import onnx
from brainseg_runtime.bundle import Bundle, Golden, write_bundle
from brainseg_runtime.certificate import Certificate, Parity, TestScan
from brainseg_runtime.engines.base import EngineIdentity
from brainseg_runtime.engines.function import FunctionEngine
from brainseg_runtime.geometry import Geometry, Reorientation
from brainseg_runtime.nifti import write_image
from brainseg_runtime.spec import Label, Modality, ModelSpec, Region
from brainseg_runtime.volume import Segmentation, Volume
from numpy.typing import NDArray
from onnx import TensorProto, helper

MODALITIES = ("t1", "t1c", "t2", "flair")

ALIASES = {
    "t1": ("t1", "t1n"),
    "t1c": ("t1c", "t1ce"),
    "t2": ("t2", "t2w"),
    "flair": ("flair", "fla", "t2f"),
}

ORIENTATIONS = [
    Reorientation(axes, flips)
    for axes in permutations(range(3))
    for flips in product((False, True), repeat=3)
]
"""The 48 ways to store one grid."""


def oblique_affine(spacing: tuple[float, float, float] = (1.0, 1.25, 3.0)) -> NDArray[np.float64]:
    """An affine turned about all three axes."""
    a, b, c = np.radians((17, -11, 8))
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = x @ y @ z @ np.diag(spacing)
    affine[:3, 3] = (3, -4, 7)
    return affine


def oblique() -> Geometry:
    """An asymmetric, anisotropic, oblique grid."""
    return Geometry((12, 10, 6), oblique_affine())


def toy_regions(min_volume_mm3: float = 0.0) -> tuple[Region, ...]:
    """BraTS' regions, pieces of each below a volume dropped."""
    parts = {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)}
    return tuple(Region(name, labels, 0.5, min_volume_mm3) for name, labels in parts.items())


def toy_spec(**changes: object) -> ModelSpec:
    """A four-modality glioma spec for small grids."""
    fields: dict[str, object] = {
        "name": "toy",
        "modalities": tuple(Modality(name, ALIASES[name]) for name in MODALITIES),
        "reference": "t1c",
        "labels": (Label(1, "NCR"), Label(2, "ED"), Label(3, "ET")),
        "regions": toy_regions(),
        "tile": (16, 16, 16),
        "divisor": (4, 4, 4),
    }
    return ModelSpec(**{**fields, **changes})


def toy_geometry(shape: tuple[int, int, int] = (20, 24, 18), spacing: float = 1.0) -> Geometry:
    """An LPS grid, as BraTS files have."""
    affine = np.diag([-spacing, -spacing, spacing, 1.0])
    affine[:3, 3] = (40.0, 60.0, -30.0)
    return Geometry(shape, affine)


def toy_volume(
    geometry: Geometry | None = None, seed: int = 0, channels: int = 4, background: float = 0.0
) -> Volume:
    """Smooth bright stuff in an off-centre ellipsoid, a constant background around it."""
    geometry = geometry or toy_geometry()
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in geometry.shape], indexing="ij")
    inside = ((axes[0] - 0.1) / 0.8) ** 2 + (axes[1] / 0.7) ** 2 + ((axes[2] + 0.1) / 0.75) ** 2 < 1
    data = np.full((*geometry.shape, channels), background, dtype=np.float32)
    for c in range(channels):
        wave = sum(a * rng.normal() for a in axes) + np.sin(3 * axes[c % 3] + rng.normal())
        values = 100 * (2 + wave) + rng.normal(0, 5, geometry.shape)
        data[..., c] = np.where(inside, values, background)
    return Volume(data, geometry, scan=f"toy-{seed}")


def mixing(spec: ModelSpec, seed: int = 3) -> NDArray[np.float32]:
    """Weights (C, R) that make every region from the intensities."""
    rng = np.random.default_rng(seed)
    return rng.normal(0, 1, (len(spec.modalities), spec.output_channels)).astype(np.float32)


def toy_engine(spec: ModelSpec, function: Callable | None = None) -> FunctionEngine:
    """An engine without a network: every logit a fixed mixture of the voxel's intensities."""
    weights = mixing(spec)
    identity = EngineIdentity("toy", "numpy", "cpu", "fp32", np.__version__)

    def mix(tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        with np.errstate(invalid="ignore", over="ignore"):
            return tiles @ weights

    return FunctionEngine(function or mix, identity)


def toy_graph(spec: ModelSpec) -> bytes:
    """The toy engine's mixture as an ONNX graph: one 1x1x1 convolution."""
    weights = mixing(spec).T[:, :, None, None, None]
    nodes = [helper.make_node("Conv", [spec.input_name, "w"], [spec.output_name])]
    shape = lambda c: ["N", c, "i", "j", "k"]  # noqa: E731
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info(spec.input_name, TensorProto.FLOAT, shape(weights.shape[1]))],
        [helper.make_tensor_value_info(spec.output_name, TensorProto.FLOAT, shape(weights.shape[0]))],
        [onnx.numpy_helper.from_array(np.ascontiguousarray(weights), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


PROVIDERS = {"ort": "CPUExecutionProvider", "openvino": "CPU"}


def toy_certificate(
    graph: bytes, precision: str = "fp32", logits: float = 1e-6, engines: Iterable[str] = PROVIDERS
) -> Certificate:
    """A certificate that covers engines on a graph."""
    digest = hashlib.sha256(graph).hexdigest()
    identities = [EngineIdentity(name, PROVIDERS[name], "cpu", precision, "1") for name in engines]
    parities = [Parity("model.onnx", digest, i, logits, {"WT": 1.0}, "toy") for i in identities]
    return Certificate("numpy", (TestScan("toy-0", {"WT": 1.0}),), tuple(parities))


def toy_bundle(folder: Path, spec: ModelSpec | None = None, **changes: object) -> Bundle:
    """A whole bundle around the toy graph; ``changes`` replace its files."""
    spec = spec or toy_spec()
    graph = toy_graph(spec)
    tile = np.random.default_rng(5).normal(size=(8, 8, 8, len(spec.modalities))).astype(np.float16)
    golden = Golden(tile.astype(np.float32), toy_engine(spec).infer(tile[None].astype(np.float32))[0])
    files = {
        "model.onnx": graph,
        "model.fp16.onnx": graph,
        "certificate.json": toy_certificate(graph).to_json().encode(),
        "selftest.npz": golden.to_npz(),
        "MODEL_CARD.md": b"# toy\n",
        "LICENSE": b"public domain\n",
    }
    return write_bundle(
        folder,
        spec,
        {**files, **changes},
        provenance={"made_by": "tests"},
        licence="CC0-1.0",
        intended_use="tests",
    )


def write_scan(folder: Path, volume: Volume, suffix: str = ".nii.gz") -> None:
    """A volume as a folder of BraTS-2023-named NIfTI files."""
    folder.mkdir(parents=True, exist_ok=True)
    for c, name in enumerate(("t1n", "t1c", "t2w", "t2f")):
        write_image(folder / f"{folder.name}-{name}{suffix}", volume.data[..., c], volume.geometry)


def phantom(codes: str = "LPS", *, empty: bool = False, scan: str = "phantom") -> tuple[Volume, Segmentation]:
    """A head of 1 mm voxels stored as ``codes`` say, with a nested lesion on its left, in front and high.

    Made in mm, so that no storage order has a say in where the lesion is.
    """
    spec = toy_spec()
    size = np.array((90, 110, 80))  # along R, A, S
    order = nibabel.orientations.axcodes2ornt(codes)
    shape = tuple(int(size[int(axis)]) for axis in order[:, 0])
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, (world, sign) in enumerate(order):
        affine[int(world), axis] = sign
        affine[int(world), 3] = -sign * (shape[axis] - 1) / 2
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    mm = grid @ affine[:3, :3].T + affine[:3, 3]
    inside = ((mm / (40, 50, 35)) ** 2).sum(-1) < 1
    far = np.linalg.norm(mm - (-18, 20, 12), axis=-1)
    labels = np.select([far < 5, far < 9, far < 13], [1, 3, 2], 0).astype(np.uint8)
    labels[np.abs(mm - (-18, 20, 12)).max(-1) > 12] = 0
    noise = np.random.default_rng(0).normal(100, 4, (*shape, 4))
    data = np.where(inside[..., None], noise + 40 * (far < 13)[..., None], 0).astype(np.float32)
    geometry = Geometry((shape[0], shape[1], shape[2]), affine)
    if empty:
        labels[:] = 0
    return Volume(data, geometry, scan=scan), Segmentation(
        labels, geometry, spec.label_names, spec.region_labels, scan=scan
    )
