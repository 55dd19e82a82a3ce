"""The KV of all running sequences and cached prefixes, in fixed pages.

Legend: P pages, S tokens of a page, H KV heads, D head dimension.
"""

import torch
from torch import Tensor

from executor.model.config import ModelConfig


class KvCache:
    """One tensor `[P + 1, S, 2, H, D]` per layer: a token's keys and values lie together.

    They are gathered by one copy, and a slice `[:, :, 0]` is a paged key cache for kernels that take strides.
    The last page belongs to nobody and stays zero: reads past a sequence's end go there, so that what a
    page's former owner left behind, even NaN, is never multiplied by a weight of zero.
    """

    def __init__(
        self, config: ModelConfig, *, pages: int, page_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (pages + 1, page_size, 2, config.kv_heads, config.head_dim)
        self.page_size = page_size
        self.pages = pages
        self.null_token = pages * page_size
        self.layers = tuple(torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.layers))
        self._flat = tuple(layer.flatten(0, 1) for layer in self.layers)

    def tokens(self, layer: int) -> Tensor:
        """A layer's KV by token, `[(P + 1) * S, 2, H, D]`; token i of page p is at `p * S + i`."""
        return self._flat[layer]


def page_bytes(config: ModelConfig, *, page_size: int, dtype: torch.dtype) -> int:
    """Bytes that one page takes over all layers."""
    return config.layers * page_size * 2 * config.kv_size * dtype.itemsize
