"""How far two masks agree."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["dice"]


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Overlap of two masks of one shape, 2|A and B| / (|A| + |B|); two empty masks agree: 1.

    Dice 1945, Sorensen 1948.
    """
    total = int(np.count_nonzero(a)) + int(np.count_nonzero(b))
    return 1.0 if total == 0 else 2.0 * int(np.count_nonzero(a & b)) / total
