"""``brainseg-export``: a Keras model in, a bundle out.

Keras and TensorFlow take seconds to import, so each verb imports what it needs, and ``--help`` answers
at once.
"""

import os
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer
from brainseg_runtime.console import Keys, end_with
from brainseg_runtime.errors import EngineUnavailable

if TYPE_CHECKING:
    from brainseg_runtime.bundle import Precision

__all__ = ["main"]

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

BundleFolder = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="A bundle's folder.", show_default=False)
]


@app.callback()
def _brainseg_export() -> None:
    """Keras model in, verified ONNX bundle out. Research use only, not a medical device."""


@app.command()
def bundle(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|MODEL.keras", help="A run's folder, or any Keras model.", show_default=False
        ),
    ],
    spec: Annotated[
        Path | None, typer.Option(help="What goes in and comes out.", show_default="the run's")
    ] = None,
    scans: Annotated[
        Path | None, typer.Option(help="Scans to measure parity on.", show_default="the run's parity/")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The bundle's folder.", show_default="bundles/<name>"),
    ] = None,
    via: Annotated[
        Literal["walker", "tf2onnx"],
        typer.Option(help="tf2onnx: ship its larger graph, for layers that the walker does not know."),
    ] = "walker",
    licence: Annotated[
        str | None,
        typer.Option(help="Of the weights: an SPDX identifier, or a file.", show_default="not stated"),
    ] = None,
    notes: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Markdown for the model card: data, figures, failures seen.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Export a model: convert, measure parity on whole scans, test, write the bundle.

    Exit status: 0 done, 2 usage, 3 no scan to measure on, 5 TensorFlow missing, 6 the model cannot be
    exported or a graph disagrees with it (nothing is written), 7 output not writable.
    """
    _prepare_tensorflow()
    from brainseg_export.pipeline import Licence, Source, export

    made_of = Source.of(source, spec, scans)
    folder = output or Path("bundles") / (source.resolve().name if source.is_dir() else source.stem)
    words = notes.read_text(encoding="utf-8") if notes else ""
    made = export(made_of, folder, _say, via, Licence.of(licence), words)
    typer.echo(f"{made.folder}  sha256 {made.sha256}")


@app.command()
def verify(folder: BundleFolder, require_signature: Keys = None) -> None:
    """Check a bundle: every byte, who signed it, the certificate's figures, the known answer on this machine.

    Exit status: 0 sound, 6 not.
    """
    from brainseg_export import verify as verification
    from brainseg_export.card import table

    results = verification.checks(folder, require_signature)
    typer.echo(table([(check.code or "ok", check.what, check.detail) for check in results]))
    verification.require(results)


@app.command()
def inspect(folder: BundleFolder) -> None:
    """Print what a bundle takes and gives, its operators, sizes and parity."""
    from brainseg_runtime.bundle import Bundle

    from brainseg_export.describe import describe

    typer.echo(describe(Bundle.open(folder)))


@app.command()
def engine(
    folder: BundleFolder,
    device: Annotated[str, typer.Option(help="For which GPU.")] = "cuda:0",
    require_signature: Keys = None,
) -> None:
    """Build a bundle's TensorRT plans on this machine, FP32 and FP16, and run the known answer through each.

    Plans stay in the cache of this machine and never go into the bundle: they are code, and fit one GPU.

    Exit status: 0 done, 5 no GPU, no TensorRT, or TensorRT does not build them, 6 the bundle is invalid or
    a plan misses the known answer.
    """
    from brainseg_runtime.bundle import Bundle
    from brainseg_runtime.engines.choice import make_engine
    from brainseg_runtime.plans.cli import ready
    from brainseg_runtime.selftest import check

    opened = Bundle.open(folder, require_signature)
    precisions: tuple[Precision, ...] = ("fp32", "fp16")
    for precision in precisions:
        said = ready(opened, precision, device)
        with closing(make_engine("trt", opened.graph(precision), opened.spec, precision, device)) as running:
            difference = check(running, opened.golden())
        typer.echo(f"{said}, known answer missed by {difference:.1e}")


@app.command()
def keygen(
    key: Annotated[
        Path, typer.Argument(metavar="KEY.pem", help="The private key to write.", show_default=False)
    ],
) -> None:
    """Make a pair of keys to sign bundles with: KEY.pem, which stays secret, and KEY.pub.pem.

    Exit status: 0 done, 5 cryptography missing, 7 not writable or already there.
    """
    from brainseg_runtime.signature import make_keys

    public = key.with_suffix(".pub.pem")
    make_keys(key, public)
    typer.echo(f"{key}  keep it secret\n{public}  give it to whoever runs your bundles")


@app.command()
def sign(
    folder: BundleFolder,
    key: Annotated[Path, typer.Option(metavar="KEY.pem", help="The private key.", show_default=False)],
) -> None:
    """Sign a bundle that is whole: manifest.sig, an Ed25519 signature over its manifest.

    Exit status: 0 done, 2 not a key, 5 cryptography missing, 6 the bundle is damaged, 7 not writable.
    """
    from brainseg_runtime.bundle import sign_bundle

    sign_bundle(folder, key)


def main() -> NoReturn:
    """``brainseg-export``."""
    end_with(lambda: app(prog_name="brainseg-export"))


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _prepare_tensorflow() -> None:
    if find_spec("tensorflow") is None:
        raise EngineUnavailable(
            "E_ENGINE_MISSING",
            "the export needs TensorFlow, which is not installed.",
            'Install it: pip install "brainseg-export[cpu]"',
        )
    # TensorFlow's notes on CPU features go past Python's logging; this is its own switch for them.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Off by default on a CPU without AVX-512, where TensorFlow's own 3-D convolutions are many times slower.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
