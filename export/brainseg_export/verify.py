"""Is a bundle whole, does its certificate hold, and do its graphs still compute the known answer here?"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from brainseg_runtime.bundle import GRAPHS, Bundle
from brainseg_runtime.errors import BundleInvalid
from brainseg_runtime.selftest import everywhere

from brainseg_export.card import figures
from brainseg_export.parity import OPTIONAL

__all__ = ["Check", "checks", "require"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    what: str
    detail: str
    code: str | None = None
    """The error's code, where it failed."""


def checks(folder: Path, require_signature: Path | None = None) -> tuple[Check, ...]:
    """Everything about a bundle that can be checked without its Keras model.

    Raises:
        BundleInvalid: where the bundle cannot even be opened; see ``Bundle.open``.
    """
    bundle = Bundle.open(folder, require_signature)
    files = Check("files", f"{len(bundle.manifest['files'])} files match their sha256")
    signed = [Check("signature", f"by a key of {require_signature}")] if require_signature else []
    return files, *signed, *_graphs(bundle), *_certificate(bundle), *_selftests(bundle)


def require(results: tuple[Check, ...]) -> None:
    """Refuse a bundle of which a check failed, with the first failure's code."""
    failed = [check for check in results if check.code is not None]
    if failed:
        raise BundleInvalid(
            str(failed[0].code),
            f"{'; '.join(f'{check.what}: {check.detail}' for check in failed)}.",
            "Do not use the bundle; export the model again.",
        )


def _graphs(bundle: Bundle) -> Iterator[Check]:
    for precision in ("fp32", "fp16"):
        what = f"graph {GRAPHS[precision]}"
        try:
            bundle.graph(precision)
        except BundleInvalid as error:
            yield Check(what, error.received, error.code)
        else:
            yield Check(what, "holds known operators and its own weights")


def _certificate(bundle: Bundle) -> Iterator[Check]:
    certificate = bundle.certificate
    regions = {region.name for region in bundle.spec.regions}
    for scan in certificate.scans:
        if set(scan.regions_ml) != regions or not all(ml > 0 for ml in scan.regions_ml.values()):
            yield Check("certificate", f"scan {scan.scan} does not have every region", "E_PARITY")
    if not certificate.scans:
        yield Check("certificate", "rests on no scan", "E_PARITY")
    digests = {bundle.graph_sha256(precision) for precision in GRAPHS}
    for parity in certificate.parities:
        what = f"parity {parity.graph} {parity.identity.engine} {parity.identity.precision}"
        tolerated = parity.identity.precision in OPTIONAL
        verdict = "" if parity.passed else "; the runtime does not run it"
        yield Check(what, figures(parity) + verdict, None if parity.passed or tolerated else "E_PARITY")
        if parity.graph in GRAPHS.values() and parity.graph_sha256 not in digests:
            yield Check(what, "was measured on another graph than the bundle's", "E_UNCERTIFIED")
    measured = {(parity.graph_sha256, parity.identity.precision) for parity in certificate.parities}
    for precision in ("fp32", "fp16"):
        if (bundle.graph_sha256(precision), precision) not in measured:
            yield Check(f"parity {GRAPHS[precision]}", "this graph was never measured", "E_UNCERTIFIED")


def _selftests(bundle: Bundle) -> Iterator[Check]:
    for verdict in everywhere(bundle):
        # A GPU that this machine does not have says nothing about the bundle.
        if verdict.certified and not (verdict.absent and verdict.device != "cpu"):
            where = "" if verdict.device == "cpu" else f" on {verdict.device}"
            what = f"self-test {verdict.engine} {verdict.precision}{where}"
            yield Check(what, verdict.detail.rstrip("."), verdict.code if verdict.broken else None)
