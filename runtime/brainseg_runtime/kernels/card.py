"""Where kernels run: a GPU, or whatever else runs the source of ``scan.cu``."""

import ctypes
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["Card"]

Scalar = TypeVar("Scalar", bound=np.generic)


class Card(Protocol):
    """Memory that is named by addresses, and the kernels that work on it.

    Memory is kept when what is in it is done with, since the next scan asks for as much. Any call may end
    with ``E_MEMORY`` or ``E_ENGINE_FAILED``.
    """

    def zeros(self, size: int) -> int:
        """The address of so many bytes, all 0, where an engine may have a tensor begin."""
        ...

    def put(self, array: NDArray[np.generic]) -> int:
        """The address of an array's copy, in C order."""
        ...

    def write(self, address: int, array: NDArray[np.generic]) -> None:
        """Copy an array, in C order, to an address that ``zeros`` or ``put`` gave."""
        ...

    def get(self, address: int, shape: tuple[int, ...], dtype: type[Scalar]) -> NDArray[Scalar]:
        """A copy of the array at an address."""
        ...

    def run(self, name: str, arguments: ctypes.Structure, threads: int) -> None:
        """One kernel, to its end, with what ``steps`` says it is told."""
        ...

    def begin(self) -> None:
        """Every address so far is done with; its memory is kept, and used again."""
        ...

    def give_back(self) -> None:
        """Every address so far is done with, and all memory is given back; more may be asked for later."""
        ...

    def close(self) -> None:
        """Give back all that is held; closing twice does nothing."""
        ...
