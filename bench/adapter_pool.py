"""The executor's half of a warm load, for `bench.adapter_loads`: check, copy to the pool, make the row."""

import time

import numpy as np
import torch

from bench.engine import SHAPES
from executor.adapters.manifest import ManifestChecker
from executor.adapters.pool import PackCopy
from executor.model.config import ModelConfig
from executor.model.layout import build_layout
from executor.model.slots import AdapterPool
from lorikeet.v1 import layout_pb2
from rpc.digests import layout_digest


class ExecutorHalf:
    """A pool of one adapter, and what an executor does to bring a leased pack into it."""

    def __init__(self, shape: str, device: str, pack_bytes: int) -> None:
        self._config = ModelConfig.parse(SHAPES[shape], {})
        self.layout = build_layout(
            self._config,
            base_digest="0" * 64,
            base_name="synthetic",
            dtype=torch.bfloat16,
            max_rank=64,
            max_pack_bytes=pack_bytes,
        )
        self._checker = ManifestChecker(self.layout, layout_digest(self.layout))
        self._pool = AdapterPool(
            self._config,
            units=pack_bytes // 128,
            slots=1,
            dtype=torch.bfloat16,
            device=torch.device(device),
        )

    def register(self, arena: np.ndarray) -> float:
        """Milliseconds that it took to make the arena known to CUDA."""
        began = time.perf_counter()
        self._pool.register(arena)
        return 1e3 * (time.perf_counter() - began)

    def release(self) -> None:
        """The arena goes."""
        self._pool.release()

    def bring(self, manifest: layout_pb2.PackManifest, pack: np.ndarray) -> tuple[float, float, float]:
        """Milliseconds of checking the manifest, copying the pack with its row, and making the row."""
        times = [time.perf_counter()]
        places = self._checker.check(manifest, manifest.digest)
        times.append(time.perf_counter())
        row = self._pool.prepare(0, manifest, places)
        times.append(time.perf_counter())
        self._pool.write([PackCopy(0, 0, pack.data, row)])
        times.append(time.perf_counter())
        checked, made, copied = (1e3 * np.diff(times)).tolist()
        return checked, copied, made
