"""The best that a GPU reaches: what speed is held against."""

from functools import partial
from statistics import median

import torch

from benchmarks.gpu.clock import seconds

__all__ = ["rates"]


def rates() -> dict[str, float]:
    """FLOP/s of square products of random matrices, by type, and bytes/s copied, read and written."""
    found = {**_products(8192), "bytes": _copied(2**32)}
    # What follows plans by what is free.
    torch.cuda.empty_cache()
    return found


def _products(size: int) -> dict[str, float]:
    torch.backends.cuda.matmul.allow_tf32 = False
    found = {}
    for name, dtype in (("fp32", torch.float32), ("fp16", torch.float16)):
        left, right = (torch.randn(size, size, device="cuda").to(dtype) for _ in range(2))
        work = partial(torch.matmul, left, right)
        found[name] = 2.0 * size**3 / median(seconds(work, torch.cuda.synchronize))
    return found


def _copied(size: int) -> float:
    source = torch.randn(size // 4, device="cuda")
    target = torch.empty_like(source)
    return 2.0 * size / median(seconds(partial(target.copy_, source), torch.cuda.synchronize))
