"""The model that answers where none is named: a distribution of its own, since its licence is its own."""

from importlib.util import find_spec
from pathlib import Path

from brainseg_runtime.extras import require

__all__ = ["DISTRIBUTION", "default_model"]

DISTRIBUTION = "brainseg-glioma"
MODULE = "brainseg_glioma"


def default_model() -> Path:
    """The folder of the default bundle.

    Raises:
        EngineUnavailable: ``E_EXTRA_MISSING`` where it is not installed.
    """
    require("to run without a model of your own (--model)", [MODULE], "brainseg-runtime[model]")
    found = find_spec(MODULE)
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "bundle"
