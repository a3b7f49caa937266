"""Keras networks for the tests of the export: small, random in every weight, and never all background."""

import keras
import numpy as np
from brainseg_export.model import load, to_logits
from brainseg_runtime.preprocess import prepare, prepare_labels
from brainseg_runtime.spec import ModelSpec
from brainseg_runtime.volume import Volume
from keras import layers
from toys import toy_geometry, toy_spec, write_scan


def image(spec: ModelSpec):
    """A network's input for a spec."""
    return keras.Input((None, None, None, len(spec.modalities)))


def randomise(model, seed: int = 0):
    """Fill a model with weights of which none is a neutral one: norms scale, shift and have statistics."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            randomise(layer, seed)
            continue
        fresh = []
        for variable in layer.weights:
            fan = int(np.prod(variable.shape[:-1])) or 1
            values = rng.normal(0, (2 / fan) ** 0.5 if len(variable.shape) > 1 else 0.5, variable.shape)
            positive = variable.name in ("moving_variance", "gamma", "alpha")
            fresh.append(np.abs(values) + 0.3 if positive else values)
        layer.set_weights(fresh)
    return model


def unet(
    spec: ModelSpec,
    widths=(4, 6, 8),
    *,
    norm: str = "batch",
    stem: bool = False,
    up: str = "transpose",
    down: str = "padded",
    activation: str | None = None,
):
    """A small U-Net; ``stem`` works at half resolution, as the preset s2d does."""
    x = source = image(spec)
    if stem:
        x = layers.Conv3D(widths[0], 2, strides=2)(x)
    skips = []
    for level, width in enumerate(widths):
        x = _block(_down(x, width, down) if level else _block(x, width, norm), width, norm)
        skips.append(x)
    for width, skip in zip(widths[-2::-1], skips[-2::-1], strict=True):
        x = layers.Conv3DTranspose(width, 2, strides=2)(x) if up == "transpose" else layers.UpSampling3D()(x)
        x = _block(layers.Concatenate()([x, skip]), width, norm)
    if stem:
        x = layers.Conv3DTranspose(spec.output_channels, 2, strides=2, name="head")(x)
    else:
        x = layers.Conv3D(spec.output_channels, 1, name="head")(joined(x, source))
    if activation is not None:
        x = layers.Activation(activation, dtype="float32")(x)
    return randomise(keras.Model(source, x))


def _down(x, width: int, how: str):
    if how == "pool":
        return layers.MaxPooling3D()(x)
    if how == "same":
        return layers.Conv3D(width, 3, strides=2, padding="same")(x)
    return layers.Conv3D(width, 3, strides=2)(layers.ZeroPadding3D(1)(x))


def _block(x, width: int, norm: str):
    x = layers.Conv3D(width, 3, padding="same", use_bias=norm == "none")(x)
    if norm == "batch":
        x = layers.BatchNormalization()(x)
    elif norm == "instance":
        x = layers.GroupNormalization(-1)(x)
    return layers.LeakyReLU(0.01)(x)


def blobs(seed: int = 0, channels: int = 4):
    """A head with a tumour of three shells, each bright in a modality of its own: a volume and its labels."""
    rng = np.random.default_rng(seed)
    geometry = toy_geometry()
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in geometry.shape], indexing="ij")
    head = sum((axis / 0.9) ** 2 for axis in axes) < 1
    centre = rng.uniform(-0.2, 0.2, 3)
    radius = np.sqrt(sum((axis - c) ** 2 for axis, c in zip(axes, centre, strict=True)))
    shells = [radius < r for r in (0.6, 0.45, 0.3)]
    data = np.zeros((*geometry.shape, channels), np.float32)
    for c in range(channels):
        bright = shells[c] if c < len(shells) else shells[0]
        data[..., c] = np.where(head, rng.normal(100 + 50 * bright, 3), 0)
    labels = np.select(shells[::-1], [3, 1, 2], 0).astype(np.uint8)
    return Volume(data, geometry, scan=f"blobs-{seed}"), labels


def joined(x, source):
    """What the layer ``head`` reads: features, and the scan itself."""
    return layers.Concatenate()([x, source])


def settle(model, spec: ModelSpec):
    """Set the layer ``head`` so that the model finds every region of ``blobs``, by a sure margin."""
    volume, labels = blobs(channels=len(spec.modalities))
    kernel, bias = model.get_layer("head").get_weights()
    kernel *= 0.1
    first = spec.output_channels - len(spec.regions)
    for r in range(len(spec.regions)):
        kernel[..., r - len(spec.modalities), first + r] += 0.7
    model.get_layer("head").set_weights([kernel, bias * 0])
    prepared = prepare(volume, spec)
    truth = prepare_labels(labels, prepared.placement)
    inside_grid = tuple(slice(size) for size in truth.shape)
    logits = np.asarray(to_logits(model, spec)(padded(prepared.data, spec)[None]))[0][inside_grid]
    for r, region in enumerate(spec.regions):
        inside = np.isin(truth, region.labels if len(spec.regions) > 1 else (1, 2, 3))
        margin = logits[..., first + r] - (logits[..., 0] if first else 0)
        bias[first + r] = -(margin[inside].mean() + margin[~inside].mean()) / 2
    bias[:first] = 0
    model.get_layer("head").set_weights([kernel, bias])
    return model


def padded(data: np.ndarray, spec: ModelSpec) -> np.ndarray:
    """A grid (i, j, k, C) with zeros up to the spec's divisor."""
    ends = [(0, -n % d) for n, d in zip(data.shape[:3], spec.divisor, strict=True)]
    return np.pad(data, [*ends, (0, 0)])


def saved(model, folder):
    """A model as it comes back from disk."""
    model.save(folder / "model.keras")
    return load(folder / "model.keras")


def small_spec(**changes: object) -> ModelSpec:
    """Two modalities, one region each."""
    from brainseg_runtime.spec import Label, Modality, Region

    return toy_spec(
        **{
            "modalities": (Modality("t1c", ("t1c",)), Modality("flair", ("t2f",))),
            "labels": (Label(1, "ED"), Label(3, "ET")),
            "regions": (Region("WT", (1, 3)), Region("ET", (3,))),
            **changes,
        }
    )


def write_run(folder, spec: ModelSpec | None = None, model=None, scans: int = 2):
    """A run's folder as the trainer leaves it, of a network that finds every region of ``blobs``."""
    spec = spec or toy_spec()
    model = settle(model or unet(spec, (4, 6), activation="sigmoid"), spec)
    folder.mkdir(parents=True)
    model.save(folder / "model.keras")
    (folder / "spec.json").write_text(spec.to_json())
    (folder / "config.toml").write_text('network = "unet"\nsteps = 0\n')
    (folder / "metrics.json").write_text(
        '{"held_out": {"mean_dice": {"WT": 0.5}, "scans": {"p7": {"dice": {"WT": 0.5}}}}}'
    )
    for n in range(scans):
        write_scan(folder / "parity" / f"p{n}", blobs(seed=n)[0])
    return folder
