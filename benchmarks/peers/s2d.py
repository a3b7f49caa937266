"""Our ``s2d`` in PyTorch, with our weights: what a network costs when PyTorch runs it."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import nn

__all__ = ["S2d"]


class Block(nn.Sequential):
    """Convolution, batch norm folded away as at export, LeakyReLU."""

    def __init__(self, source: int, filters: int, stride: int = 1) -> None:
        super().__init__(nn.Conv3d(source, filters, 3, stride, 1), nn.LeakyReLU(0.01, inplace=True))


class S2d(nn.Module):
    """Our ``s2d``, layer for layer."""

    def __init__(self, widths: Sequence[int], stem: int = 32, outputs: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv3d(4, stem, 2, 2)
        before = (stem, *widths)
        self.down = nn.ModuleList(
            nn.Sequential(Block(before[n], w, 2 if n else 1), Block(w, w)) for n, w in enumerate(widths)
        )
        self.up = nn.ModuleList(nn.ConvTranspose3d(b, a, 2, 2) for a, b in pairwise(widths))
        self.merge = nn.ModuleList(nn.Sequential(Block(2 * w, w), Block(w, w)) for w in widths[:-1])
        self.head = nn.ConvTranspose3d(widths[0], outputs, 2, 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits of an image, (N, 4, i, j, k) -> (N, R, i, j, k)."""
        x, skips = self.stem(image), []
        for block in self.down:
            x = block(x)
            skips.append(x)
        for n in reversed(range(len(self.up))):
            x = self.merge[n](torch.cat([self.up[n](x), skips[n]], 1))
        return self.head(x)

    @classmethod
    def of(cls, layers: Sequence[tuple[np.ndarray, np.ndarray]]) -> "S2d":
        """With kernel and bias of every convolution of a clean graph, in the order of the graph.

        Whoever calls it sees to it that the logits are ours: a wrong order may fit as well.
        """
        (stem, *_), downs = layers[0][0].shape, layers[1 : 1 + 2 * _depth(layers)]
        network = cls([kernel.shape[0] for kernel, _ in downs[::2]], stem, layers[-1][0].shape[1])
        order: list[nn.Module] = []
        convolutions = [m for m in network.modules() if isinstance(m, nn.Conv3d | nn.ConvTranspose3d)]
        hooks = [m.register_forward_hook(lambda m, *_: order.append(m)) for m in convolutions]
        with torch.inference_mode():
            network(torch.zeros(1, 4, 32, 32, 32))
        for hook in hooks:
            hook.remove()
        for layer, (kernel, bias) in zip(order, layers, strict=True):
            layer.weight.data = torch.from_numpy(kernel.copy())
            layer.bias.data = torch.from_numpy(bias.copy())
        return network.eval()


def _depth(layers: Sequence[tuple[np.ndarray, np.ndarray]]) -> int:
    """Levels: stem and head, two convolutions a level, three more at every level but the last."""
    return (len(layers) + 1) // 5
