"""What is in a bundle, in words: its spec, its graphs, its certificate."""

from collections.abc import Mapping

from brainseg_runtime.bundle import GRAPHS, Bundle
from onnx import ModelProto, ValueInfoProto, load_from_string, numpy_helper

from brainseg_export.card import PARITY_HEAD, parity_rows, spec_rows, table
from brainseg_export.graph import operators

__all__ = ["describe"]


def describe(bundle: Bundle) -> str:
    """A page of text about a bundle."""
    origin = bundle.manifest["provenance"]
    head = [
        ("bundle", bundle.spec.name),
        ("sha256", bundle.sha256),
        ("made", f"{origin.get('created', 'at an unknown time')}, via {origin.get('via', 'unknown')}"),
        ("licence", str(bundle.manifest["licence"])),
        ("intended use", str(bundle.manifest["intended_use"])),
    ]
    scans = ", ".join(f"{scan.scan} ({_volumes(scan.regions_ml)})" for scan in bundle.certificate.scans)
    return "\n\n".join(
        [
            table(head),
            table(spec_rows(bundle.spec)),
            *(f"{name}\n{_graph(bundle.read(name))}" for name in dict.fromkeys(GRAPHS.values())),
            f"parity with {bundle.certificate.reference}, on {scans}\n"
            + table([PARITY_HEAD, *parity_rows(bundle.certificate)]),
            "\n".join(f"{parity.graph}: {parity.proves}" for parity in bundle.certificate.parities),
        ]
    )


def _graph(data: bytes) -> str:
    model: ModelProto = load_from_string(data)
    graph = model.graph
    weights = sum(numpy_helper.to_array(weight).size for weight in graph.initializer)
    counts = operators(model)
    return table(
        [
            ("  size", f"{len(data) / 1e6:.2f} MB, {weights:,} weights"),
            ("  version", f"opset {model.opset_import[0].version}, IR {model.ir_version}"),
            *(("  input", _value(value)) for value in graph.input),
            *(("  output", _value(value)) for value in graph.output),
            (
                "  nodes",
                f"{sum(counts.values())}: {', '.join(f'{op} {n}' for op, n in counts.most_common())}",
            ),
        ]
    )


def _value(value: ValueInfoProto) -> str:
    kind = value.type.tensor_type
    dims = (dim.dim_param or str(dim.dim_value) for dim in kind.shape.dim)
    return f"{value.name} ({', '.join(dims)}) {KINDS.get(kind.elem_type, kind.elem_type)}"


KINDS = {1: "float32", 10: "float16"}
"""ONNX' numbers for the types that a graph may begin and end with."""


def _volumes(regions_ml: Mapping[str, float]) -> str:
    return ", ".join(f"{region} {ml:.1f} ml" for region, ml in regions_ml.items())
