"""The best that a GPU reaches: what speed is held against."""

from statistics import median

import torch

from benchmarks.gpu.clock import seconds

__all__ = ["rates"]


def rates(size: int = 8192) -> dict[str, float]:
    """FLOP/s of square products of random matrices, by type, and bytes/s copied, read and written."""
    found = {}
    a, b = (torch.randn(size, size, device="cuda") for _ in range(2))
    torch.backends.cuda.matmul.allow_tf32 = False
    for name, dtype in (("fp32", torch.float32), ("fp16", torch.float16)):
        left, right = a.to(dtype), b.to(dtype)
        found[name] = 2.0 * size**3 / median(seconds(lambda x=left, y=right: x @ y, torch.cuda.synchronize))
    source = torch.randn(2**30, device="cuda")
    target = torch.empty_like(source)
    copied = median(seconds(lambda: target.copy_(source), torch.cuda.synchronize))
    found["bytes"] = 2.0 * source.numel() * source.element_size() / copied
    return found
