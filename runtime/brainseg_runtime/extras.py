"""Parts of brainseg that are installed only where they are asked for."""

from collections.abc import Sequence
from importlib.util import find_spec

from brainseg_runtime.errors import EngineUnavailable

__all__ = ["require", "there"]


def require(what: str, modules: Sequence[str], extra: str) -> None:
    """Refuse early where something that was asked for is not installed.

    Raises:
        EngineUnavailable: ``E_EXTRA_MISSING`` with the line that installs it.
    """
    if not all(map(there, modules)):
        raise EngineUnavailable(
            "E_EXTRA_MISSING",
            f"{what} needs {' and '.join(modules)}, not installed here.",
            f'Install it: pip install "{extra}"',
        )


def there(module: str) -> bool:
    """Whether a package, or a part of one, can be imported; it is not."""
    try:
        return find_spec(module) is not None
    # What find_spec says of a package's part without the package, and of a module emptied in sys.modules.
    except (ModuleNotFoundError, ValueError):
        return False
