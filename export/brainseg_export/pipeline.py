"""From a run's folder, or any Keras model with its spec, to a bundle that has proved itself."""

import hashlib
import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import onnx
from brainseg_runtime.bundle import GRAPHS, Bundle, Golden, write_bundle
from brainseg_runtime.engines.choice import ENGINES, default_device, installed, make_engine
from brainseg_runtime.errors import EngineUnavailable, ScanRefused, UsageRefused
from brainseg_runtime.graph import check as check_graph
from brainseg_runtime.scans import Found, find_scans, read
from brainseg_runtime.selftest import check
from brainseg_runtime.spec import ModelSpec
from brainseg_runtime.volume import Volume

from brainseg_export import golden, parity, verify
from brainseg_export.card import INTENDED_USE, write_card
from brainseg_export.graph import stamped
from brainseg_export.half import to_half
from brainseg_export.locality import halo, require_local, working_bytes
from brainseg_export.model import keras_engine, load, to_logits
from brainseg_export.parity import Form, Reference, certify, reference_scans
from brainseg_export.walker import walk
from brainseg_export.witness import convert

__all__ = ["Licence", "Source", "Via", "export"]

Via = Literal["walker", "tf2onnx"]
Model = Any
Say = Callable[[str], None]


@dataclass(frozen=True)
class Licence:
    """The licence of the weights: its name, and the text that travels with them."""

    name: str
    text: str

    @classmethod
    def of(cls, words: str | None) -> "Licence":
        """From a file that holds a licence, from an SPDX identifier, or from nothing at all."""
        if words is None:
            return cls("not stated", "Whoever exported these weights stated no licence for them.\n")
        if (path := Path(words)).is_file():
            text = path.read_text(encoding="utf-8")
            return cls(next((line.strip() for line in text.splitlines() if line.strip()), path.name), text)
        return cls(words, f"The weights in this bundle are licensed under: {words}\n")


@dataclass(frozen=True)
class Source:
    """What a bundle is made of."""

    model: Path
    spec: ModelSpec
    scans: Path
    """A folder of scans to measure parity on."""
    run: Path | None = None
    """The run that trained the model, if it is one of ours."""

    @classmethod
    def of(cls, path: Path, spec: Path | None = None, scans: Path | None = None) -> "Source":
        """From a run's folder, which has everything, or from a model's file with a spec and scans.

        Raises:
            UsageRefused: ``E_USAGE`` where a file comes without spec or scans, ``E_INPUT_MISSING``.
            BundleInvalid: for a spec that is malformed or contradicts itself.
        """
        run = path if path.is_dir() else None
        if run is not None:
            spec, scans = spec or run / "spec.json", scans or run / "parity"
        if spec is None or scans is None:
            raise UsageRefused(
                "E_USAGE",
                f"{path} is not a run's folder, so it has no spec and no scans of its own.",
                "Give both: --spec spec.json --scans FOLDER.",
            )
        model = run / "model.keras" if run is not None else path
        for needed, there in ((model, model.is_file()), (spec, spec.is_file()), (scans, scans.exists())):
            if not there:
                raise UsageRefused("E_INPUT_MISSING", f"there is no {needed}.", "Train first, or name it.")
        return cls(model, ModelSpec.from_json(spec.read_bytes()), scans, run)


def export(
    source: Source,
    output: Path,
    say: Say,
    via: Via = "walker",
    licence: Licence | None = None,
    notes: str = "",
) -> Bundle:
    """Convert, measure, test, and only then write a bundle; ``notes`` are Markdown for its model card.

    Raises:
        BundleInvalid: ``E_MODEL``, ``E_SPEC``, ``E_LAYER``, ``E_GRAPH_OPERATOR`` where the model cannot be
            converted, ``E_PARITY`` where a graph disagrees with it, ``E_SELFTEST`` where the
            known answer is missed.
        ScanRefused: ``E_NO_SCANS``.
        OutputUnwritable: ``E_OUTPUT``.
    """
    licence, spec = licence or Licence.of(None), source.spec
    training, scans = _training(source.run), find_scans(source.scans, spec)
    model = load(source.model)
    logits = to_logits(model, spec)
    graph = walk(logits, spec) if via == "walker" else convert(logits, spec)
    say(f"{via}: {len(graph.graph.node)} nodes")
    require_local(graph, spec)
    keras = keras_engine(logits)
    references = reference_scans(_volumes(scans, say), keras, spec, say)
    spec = _measured(spec, graph, references, say)
    files = {GRAPHS["fp32"]: _bytes(stamped(graph, spec)), GRAPHS["fp16"]: _bytes(to_half(graph))}
    for data in files.values():
        check_graph(data)
    forms = [_witness(logits, spec, say)] if via == "walker" else []
    forms += _forms(files, spec, via, say)
    say(f"parity: {len(forms)} forms on {', '.join(r.volume.scan for r in references)}")
    certificate = certify(forms, references, spec, _reference(model))
    parity.require(certificate)
    answer = golden.choose(references, keras, spec)
    for form, measured in zip(forms, certificate.parities, strict=True):
        if form.graph in files and measured.passed:
            with closing(make_engine(form.engine, form.data, spec, form.precision, form.device)) as engine:
                check(engine, Golden.from_npz(answer.to_npz()))
    provenance = _provenance(source, model, files, via)
    card = write_card(spec, certificate, licence.name, provenance, training, notes)
    bundle = write_bundle(
        output,
        spec,
        {
            **files,
            "certificate.json": certificate.to_json().encode(),
            "selftest.npz": answer.to_npz(),
            "MODEL_CARD.md": card.encode(),
            "LICENSE": licence.text.encode(),
        },
        provenance=provenance,
        licence=licence.name,
        intended_use=INTENDED_USE,
    )
    # What was measured is in memory; what will be used is on disk.
    verify.require(verify.checks(bundle.folder))
    return bundle


def _measured(
    spec: ModelSpec, graph: onnx.ModelProto, references: Sequence[Reference], say: Say
) -> ModelSpec:
    """The spec, with what only the finished network can tell."""
    spec = replace(spec, working_bytes=working_bytes(graph, spec))
    best = next(name for name, kind in ENGINES.items() if kind.runs_on("cpu") and installed(name))
    with closing(make_engine(best, _bytes(graph), spec)) as engine:
        spec = replace(spec, halo=halo([r.prepared.data for r in references], engine, spec))
    seen = f", slabs with a halo of {spec.halo} voxels" if spec.halo else ""
    say(f"scheme {spec.scheme}{seen}, {spec.working_bytes} bytes of activations a voxel")
    return spec


def _forms(files: Mapping[str, bytes], spec: ModelSpec, via: Via, say: Say) -> list[Form]:
    """The bundle's graphs on every engine that is installed, in every precision that runs here."""
    forms = []
    for name, kind in ENGINES.items():
        device = default_device(name)
        if not installed(name):
            say(f"{name} is not installed: the certificate will not cover it. {kind.line(device)}")
            continue
        for precision in kind.precisions:
            data = files[GRAPHS[precision]]
            try:
                make_engine(name, data, spec, precision, device).close()
            except EngineUnavailable as error:
                say(f"{name} in {precision} is left out: {error.received}")
            else:
                proves = PROVES[via, precision] if device == "cpu" else PROVES["gpu"]
                forms.append(Form(GRAPHS[precision], data, precision, proves, name, device))
    return forms


def _witness(logits: Model, spec: ModelSpec, say: Say) -> Form:
    graph = convert(logits, spec)
    say(f"tf2onnx, as a witness: {len(graph.graph.node)} nodes")
    return Form("tf2onnx", _bytes(graph), "fp32", PROVES["tf2onnx"])


_ROUNDING = (
    "its weights survive the rounding to FP16. On a CPU the engines compute an FP16 graph in FP32: this "
    "proves nothing about FP16 arithmetic."
)

_GPU = "computed on this GPU, with this driver, in the precision that it names; of others it proves nothing."

_BFLOAT = "computed in bfloat16, which this engine does by itself on a CPU that has it."

PROVES: Mapping[str | tuple[str, str], str] = {
    "tf2onnx": "an independent converter reads the same function out of the Keras model.",
    "gpu": _GPU,
    ("walker", "fp32"): "the clean graph computes what Keras computes, in FP32 on this engine.",
    ("walker", "fp16"): _ROUNDING,
    ("walker", "bf16"): _BFLOAT,
    (
        "tf2onnx",
        "fp32",
    ): "tf2onnx' graph, shipped by --via tf2onnx, computes what Keras computes; it may hold any "
    "ONNX operator, and there is no second converter to witness it.",
    ("tf2onnx", "fp16"): _ROUNDING,
    ("tf2onnx", "bf16"): _BFLOAT,
}
"""What each measurement shows and what it does not, in words that follow the graph's name."""


def _bytes(model: onnx.ModelProto) -> bytes:
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _volumes(found: Found, say: Say) -> Iterator[Volume]:
    for name, refusal in found.refused.items():
        say(f"parity: scan {name} is left out: {refusal}")
    for scan in found.scans:
        try:
            volume = read(scan)
        except ScanRefused as error:
            say(f"parity: scan {scan.id} is left out: {error}")
            continue
        yield volume


def _reference(model: Model) -> str:
    policy = {str(layer.dtype_policy.name) for layer in model.layers} - {"float32"}
    trained = f", trained in {', '.join(sorted(policy))}" if policy else ""
    made = f"keras {version('keras')}, tensorflow {_tensorflow()}{trained}"
    return f"the Keras model in float32 on the CPU ({made})"


def _tensorflow() -> str:
    import tensorflow

    return str(tensorflow.__version__)


def _provenance(source: Source, model: Model, files: Mapping[str, bytes], via: Via) -> dict[str, object]:
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "via": via,
        "run": source.run.resolve().name if source.run else "",
        "model_sha256": hashlib.sha256(source.model.read_bytes()).hexdigest(),
        "parameters": int(model.count_params()),
        "nodes": {name: len(onnx.load_from_string(data).graph.node) for name, data in files.items()},
        "versions": {
            "python": platform.python_version(),
            "tensorflow": _tensorflow(),
            **{name: version(name) for name in PACKAGES},
            **{name: version(name) for name in ENGINE_PACKAGES if find_spec(name)},
        },
    }


ENGINE_PACKAGES = ("onnxruntime", "openvino")
PACKAGES = ("keras", "onnx", "tf2onnx", "numpy", "brainseg-runtime", "brainseg-export")


def _training(run: Path | None) -> str:
    """What a run says about itself: its configuration, and its scores but for those of single scans."""
    if run is None:
        return "Trained elsewhere; ask whoever made the model."
    parts = []
    if (config := run / "config.toml").is_file():
        parts += ["Configuration:", "", "```toml", config.read_text(encoding="utf-8").strip(), "```", ""]
    if (metrics := run / "metrics.json").is_file():
        parts += ["Scores:", "", "```json", json.dumps(_summary(metrics), indent=1), "```", ""]
    return "\n".join(parts).strip() or "The run left no record of its training."


def _summary(metrics: Path) -> dict[str, object]:
    """A run's scores, scans counted instead of listed."""
    try:
        sections: dict[str, dict[str, Any]] = json.loads(metrics.read_bytes())
        return {
            name: {
                key: len(value) if key == "scans" or isinstance(value, list) else value
                for key, value in section.items()
            }
            for name, section in sections.items()
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageRefused(
            "E_RUN", f"{metrics} is not what the trainer writes: {error}.", "Evaluate the run again."
        ) from error
