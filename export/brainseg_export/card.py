"""MODEL_CARD.md, and the words for a spec and a certificate that ``inspect`` and ``verify`` share."""

from collections.abc import Iterable, Mapping, Sequence

from brainseg_runtime.certificate import BOUNDS, Certificate, Parity
from brainseg_runtime.spec import ModelSpec

__all__ = ["INTENDED_USE", "figures", "parity_rows", "spec_rows", "table", "write_card"]

INTENDED_USE = "Research use only. Not a medical device; not for diagnosis or treatment."

Rows = list[tuple[str, ...]]


def write_card(
    spec: ModelSpec,
    certificate: Certificate,
    licence: str,
    provenance: Mapping[str, object],
    training: str,
    notes: str = "",
) -> str:
    """The model card, in Markdown; ``training`` is what the run says about itself, in Markdown.

    ``notes``: what whoever exports it has to say beside.
    """
    scans = ", ".join(scan.scan for scan in certificate.scans)
    return "\n".join(
        [
            f"# {spec.name}",
            "",
            f"Segments {', '.join(region.name for region in spec.regions)} in MRI of the head.",
            "",
            f"**{INTENDED_USE}**",
            "",
            f"Licence of the weights: {licence}.",
            "",
            "## Inputs and outputs",
            "",
            *_markdown(("", ""), spec_rows(spec)),
            "",
            *([notes.strip(), ""] if notes else []),
            "## Training",
            "",
            training,
            "",
            "## Parity",
            "",
            f"Held against {certificate.reference}, on whole scans ({scans}).",
            "",
            *_markdown(PARITY_HEAD, parity_rows(certificate)),
            "",
            *dict.fromkeys(f"- `{parity.graph}`: {parity.proves}" for parity in certificate.parities),
            "",
            "## Origin",
            "",
            *_markdown(("", ""), _flat(provenance)),
            "",
            "## Limits",
            "",
            LIMITS,
            "",
        ]
    )


LIMITS = """\
- It has only seen scans like those that it was trained on. Other scanners, ages, diseases, states after
  surgery and intensity scales can give wrong masks without any sign of it.
- It always answers: a scan without a tumour, or of another body part, is not recognised as such.
- Parity says that the exported graphs segment as the Keras model does, not that either is right.
- A person who can read such scans must look at every result."""


def spec_rows(spec: ModelSpec) -> Rows:
    """The spec in words, (what, value) by row."""
    inputs = (
        f"{modality.name} ({', '.join(modality.aliases)})" if modality.aliases else modality.name
        for modality in spec.modalities
    )
    labels = spec.label_names
    regions = (
        f"{region.name} = {' + '.join(labels[value] for value in region.labels)}" for region in spec.regions
    )
    grid = " x ".join(f"{mm:g}" for mm in spec.spacing)
    rows = [
        ("inputs, in order", "; ".join(inputs)),
        ("result lies on the grid of", spec.reference),
        ("labels", ", ".join(f"{value} {name}" for value, name in labels.items())),
        ("regions", "; ".join(regions)),
        ("network's grid", f"{grid} mm, axes {spec.orientation}"),
        ("intensities", NORMALISATIONS[spec.normalisation]),
        ("scheme", _scheme(spec)),
        ("output", f"{spec.output_channels} logits, {spec.activation}"),
    ]
    if spec.types:
        rows.append(("types of tumour told apart", ", ".join(spec.types)))
    if spec.activation == "sigmoid":
        rows.append(("thresholds", ", ".join(f"{r.name} {r.threshold:g}" for r in spec.regions)))
    judged = [f"of {r.name} below {r.min_volume_mm3:g} mm3" for r in spec.regions if r.min_volume_mm3]
    if judged:
        rows.append(("dropped pieces", ", ".join(judged)))
    return [*rows]


def _scheme(spec: ModelSpec) -> str:
    """How a head is computed, in words."""
    multiples = f"multiples of {_sizes(spec.divisor)}"
    if spec.scheme == "tiles":
        return f"tiles of {_sizes(spec.tile)} voxels, overlap {spec.overlap:.0%}, {multiples}"
    slabs = f"in slabs with a halo of {spec.halo} voxels where memory asks for it, " if spec.halo else ""
    return f"the whole head in one pass, {slabs}{multiples}"


NORMALISATIONS = {"zscore": "z-score of each modality over the brain", "none": "as in the files"}

PARITY_HEAD = ("graph", "engine", "precision", "logits", "allowed", "Dice", "at least", "")


def parity_rows(certificate: Certificate) -> Rows:
    """The certificate's figures under ``PARITY_HEAD``, verdict last."""
    rows: Rows = []
    for parity in certificate.parities:
        identity, bounds = parity.identity, BOUNDS[parity.identity.precision]
        rows.append(
            (
                parity.graph,
                f"{identity.engine} {identity.version}",
                identity.precision,
                f"{parity.logits:.1e}",
                f"{bounds.logits:g}",
                ", ".join(f"{region} {value:.5f}" for region, value in parity.dice.items()),
                f"{bounds.dice:g}",
                "passed" if parity.passed else "not passed",
            )
        )
    return rows


def figures(parity: Parity) -> str:
    """One form's figures beside their bounds, in a line."""
    bounds = BOUNDS[parity.identity.precision]
    overlaps = ", ".join(f"{region} {value:.5f}" for region, value in parity.dice.items())
    return f"logits {parity.logits:.1e} (<= {bounds.logits:g}), Dice {overlaps} (>= {bounds.dice:g})"


def table(rows: Iterable[Sequence[str]]) -> str:
    """Rows as lines of text, columns aligned."""
    rows = [tuple(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _markdown(head: tuple[str, ...], rows: Rows) -> list[str]:
    return [_row(head), _row(("---",) * len(head)), *map(_row, rows)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _flat(values: Mapping[str, object], prefix: str = "") -> Rows:
    """Nested values as rows of (name, value)."""
    rows: Rows = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name} ")
        else:
            rows.append((f"{prefix}{name}", str(value)))
    return rows


def _sizes(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))
