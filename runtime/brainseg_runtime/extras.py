"""Parts of brainseg that are installed only where they are asked for."""

from collections.abc import Sequence
from importlib.util import find_spec

from brainseg_runtime.errors import EngineUnavailable

__all__ = ["require"]


def require(what: str, modules: Sequence[str], extra: str) -> None:
    """Refuse early where something that was asked for is not installed.

    Raises:
        EngineUnavailable: ``E_EXTRA_MISSING`` with the line that installs it.
    """
    if any(find_spec(module) is None for module in modules):
        raise EngineUnavailable(
            "E_EXTRA_MISSING",
            f"{what} needs {' and '.join(modules)}, not installed here.",
            f'Install it: pip install "{extra}"',
        )
