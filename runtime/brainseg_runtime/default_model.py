"""The model that answers where none is named: a distribution of its own, since its licence is its own."""

from importlib.util import find_spec
from pathlib import Path

from brainseg_runtime.errors import EngineUnavailable

__all__ = ["DISTRIBUTION", "default_model"]

DISTRIBUTION = "brainseg-glioma"
MODULE = "brainseg_glioma"


def default_model() -> Path:
    """The folder of the default bundle.

    Raises:
        EngineUnavailable: ``E_EXTRA_MISSING`` where it is not installed.
    """
    found = find_spec(MODULE)
    if found is None or found.origin is None:
        raise EngineUnavailable(
            "E_EXTRA_MISSING",
            f"no model was named, and {DISTRIBUTION}, the default one, is not installed.",
            'Name a bundle (--model), or: pip install "brainseg-runtime[model]".',
        )
    return Path(found.origin).parent / "bundle"
