"""What an adapter's slot row needs beyond its pack: computed once, from the pack in the pool and the base.

Kernels know one form of adapter, y being the base's output with its own bias b:

    y' = gain * (y + s B A x) + shift

PEFT's forms come down to it as follows, c being the adapter's bias, or b where it brings none:

    plain, bias, lora_bias    W x + c + s (B A x + lora_bias)     gain 1, shift c - b + s lora_bias
    DoRA, perhaps with bias   gain (W x + s B A x) + c            gain m / ||W + s B A||, shift c - gain b

so that `shift = c - gain b + s lora_bias` holds for all; PEFT has no DoRA with lora_bias. The norm is that of
a row, `[out]`, in float32; an embedding's W is the transpose of its table, so that its gain is `[hidden]`.
(DoRA: Liu et al. 2024.) The gain overwrites the magnitude; the shift has room of its own in the pack.

Legend: N out features, K in features, V vocabulary, R rank; B rows of a chunk.
"""

import torch
from torch import Tensor

from executor.model.config import ModelConfig
from executor.model.layout import NamedSlice, named_slices
from executor.model.parameters import Parameters
from lorikeet.v1 import layout_pb2

# Elements of W taken at a time, in float32. On the CPU a chunk stays near the cache and ends within
# milliseconds, so that steps get their turn; on a GPU fewer and longer launches keep the interpreter free.
_CPU_CHUNK = 1 << 20
_GPU_CHUNK = 1 << 24


class Derivation:
    """Computes gains and shifts of packs that lie in `pool`, for one base."""

    def __init__(self, config: ModelConfig, parameters: Parameters, pool: Tensor) -> None:
        self._bytes = pool.view(torch.uint8)
        self._dtype = pool.dtype
        self._slices = named_slices(config)
        self._base = parameters.destinations(config)
        self._base.setdefault("lm_head.weight", parameters.head)
        self._chunk = _GPU_CHUNK if pool.is_cuda else _CPU_CHUNK

    @torch.no_grad()
    def derive(self, start: int, manifest: layout_pb2.PackManifest) -> None:
        """Complete the pack that begins at byte `start` of the pool; it must have been checked.

        Raises ValueError, naming the module, where a gain is not finite: a row of W + s B A is zero.
        """
        gains: list[tuple[str, Tensor]] = []
        for place in manifest.slices:
            named = self._slices[place.slice]
            gain_N = None
            if place.HasField("magnitude_offset"):
                gain_N = self._vector(start + place.magnitude_offset, named)
                gain_N.div_(self._norms(start, place, named))
                gains.append((named.module, gain_N))
            if place.HasField("shift_offset"):
                self._vector(start + place.shift_offset, named).copy_(
                    self._shift(start, place, named, gain_N)
                )
        if gains and not torch.stack([gain_N.isfinite().all() for _, gain_N in gains]).all():
            module = next(module for module, gain_N in gains if not gain_N.isfinite().all())
            raise ValueError(
                f"DoRA on {module}: a row of the base's weight plus the LoRA is zero, so that its magnitude "
                "has no direction; train the adapter for this base"
            )

    def _shift(
        self, start: int, place: layout_pb2.SlicePlacement, named: NamedSlice, gain_N: Tensor | None
    ) -> Tensor:
        shift_N = torch.zeros(named.shape.out_features, dtype=torch.float32, device=self._bytes.device)
        base_N = self._base[f"{named.module}.bias"].float() if named.has_bias else shift_N
        own_N = self._vector(start + place.bias_offset, named) if place.HasField("bias_offset") else base_N
        shift_N = own_N - (base_N if gain_N is None else gain_N * base_N)
        if place.HasField("lora_bias_offset"):
            shift_N = shift_N + place.scaling * self._vector(start + place.lora_bias_offset, named)
        return shift_N

    def _norms(self, start: int, place: layout_pb2.SlicePlacement, named: NamedSlice) -> Tensor:
        """||W + s B A|| of each output."""
        weight, shape, rank = self._base[f"{named.module}.weight"], named.shape, place.padded_rank
        b_NR = self._matrix(start + place.b_offset, shape.out_features, rank)
        rows = max(1, self._chunk // weight.shape[1])
        if shape.kind == "embedding":
            a_VR, b_RN = self._matrix(start + place.a_offset, shape.in_features, rank), b_NR.float().t()
            squares_N = torch.zeros(shape.out_features, dtype=torch.float32, device=weight.device)
            for weight_BN, a_BR in zip(weight.split(rows), a_VR.split(rows), strict=True):
                changed_BN = torch.addmm(weight_BN.float(), a_BR.float(), b_RN, alpha=place.scaling)
                squares_N += changed_BN.square_().sum(dim=0)
            return squares_N.sqrt_()
        a_RK = self._matrix(start + place.a_offset, rank, shape.in_features).float()
        norms = []
        for weight_BK, b_BR in zip(weight.split(rows), b_NR.split(rows), strict=True):
            changed_BK = torch.addmm(weight_BK.float(), b_BR.float(), a_RK, alpha=place.scaling)
            norms.append(torch.linalg.vector_norm(changed_BK, dim=1))
        return torch.cat(norms)

    def _vector(self, first: int, named: NamedSlice) -> Tensor:
        return self._bytes[first : first + named.shape.out_features * 4].view(torch.float32)

    def _matrix(self, first: int, rows: int, columns: int) -> Tensor:
        size = rows * columns * self._dtype.itemsize
        return self._bytes[first : first + size].view(self._dtype).view(rows, columns)
