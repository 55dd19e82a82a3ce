"""What paged attention computes, query by query. Read it as the definition; nothing serves with it.

Legend: T tokens, H query heads, K KV heads, D head dimension, P pages, S tokens of a page, R rows, C columns.
"""

import torch
from torch import Tensor

from kernels.attention.tiles import QueryTiles


def attend(
    out_TE: Tensor,
    q_THD: Tensor,
    kv_PS2KD: Tensor,
    page_table_RC: Tensor,
    tiles: QueryTiles,
    *,
    scale: float,
    window: int | None = None,
) -> None:
    """Causal grouped-query attention over pages, written to `out`.

    Semantics: a query at position p of a row, head h, sees keys j of KV head h // (H / K) with j <= p and,
    with a window, j > p - window: `out = softmax(scale * q @ k.T) @ v`, in float32, rounded once.

    Shapes: out `[T, H * D]`, q `[T, H, D]`, kv `[P, S, 2, K, D]` (keys, then values), page_table int32
    `[R, C]`. Tokens outside every tile are left untouched.
    """
    heads, head_dim = q_THD.shape[1:]
    page_size, group = kv_PS2KD.shape[1], heads // kv_PS2KD.shape[3]
    for row, token, position, count in tiles.places.T.tolist():
        for i in range(count):
            last = position + i
            first = 0 if window is None else max(0, last - window + 1)
            seen = torch.arange(first, last + 1, device=kv_PS2KD.device)
            pages = page_table_RC[row].index_select(0, seen // page_size).long()
            kv_L2KD = kv_PS2KD[pages, seen % page_size].float()
            k_LHD, v_LHD = (part.repeat_interleave(group, dim=1) for part in kv_L2KD.unbind(1))
            scores_HL = torch.einsum("hd,lhd->hl", q_THD[token + i].float(), k_LHD) * scale
            out_HD = torch.einsum("hl,lhd->hd", scores_HL.softmax(-1), v_LHD)
            out_TE[token + i] = out_HD.reshape(heads * head_dim).to(out_TE.dtype)
