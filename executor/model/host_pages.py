"""KV pages in host memory: where prefixes wait that left the cache.

Legend: P pages of host memory, L layers, S tokens of a page, H KV heads, D head dimension, B pages of one
copy.
"""

import numpy as np
import torch
from torch import Tensor

from executor.control.plan import PageCopies
from executor.model.kv_cache import KvCache
from kernels.transfer import upload

_BATCH = 16


class HostPages:
    """One page-locked tensor `[P, L, S, 2, H, D]`, so that a page is one piece of memory.

    Copies are queued behind what the device has to do, and what is launched after them finds them done.
    """

    def __init__(self, cache: KvCache, *, pages: int) -> None:
        self._layers = cache.layers
        page_shape = (len(cache.layers), *cache.layers[0].shape[1:])
        like = cache.layers[0]
        self._pages = torch.empty((pages, *page_shape), dtype=like.dtype, pin_memory=like.is_cuda)
        self._batch = like.new_empty((_BATCH, *page_shape))

    def save(self, copies: PageCopies) -> None:
        """From the cache's pages `sources` to the host's `targets`."""
        for begin in range(0, len(copies), _BATCH):
            targets = copies.targets[begin : begin + _BATCH].tolist()
            pages_B = self._ids(copies.sources[begin : begin + _BATCH])
            for index, layer in enumerate(self._layers):
                self._batch[: len(targets), index] = layer.index_select(0, pages_B)
            for at, target in enumerate(targets):
                self._pages[target].copy_(self._batch[at], non_blocking=True)

    def restore(self, copies: PageCopies) -> None:
        """From the host's pages `sources` to the cache's `targets`."""
        for begin in range(0, len(copies), _BATCH):
            sources = copies.sources[begin : begin + _BATCH].tolist()
            for at, source in enumerate(sources):
                self._batch[at].copy_(self._pages[source], non_blocking=True)
            pages_B = self._ids(copies.targets[begin : begin + _BATCH])
            for index, layer in enumerate(self._layers):
                layer.index_copy_(0, pages_B, self._batch[: len(sources), index])

    def _ids(self, ids_B: np.ndarray) -> Tensor:
        (sent,) = upload(self._batch.device, ids_B.astype(np.int64))
        return sent
