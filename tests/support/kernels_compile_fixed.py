"""Compiles the kernels of the deterministic mode and of sampling for sm_90; see `kernels_compile`.

python -m tests.support.kernels_compile_fixed
"""

from typing import Any

from kernels.attention import fixed as attention
from kernels.linear import fixed as linear
from kernels.sampling import cut
from kernels.sampling import gpu as sampling
from tests.support.kernels_compile import compile_kernel


def product(dtype: str, *, is_split: bool) -> None:
    types: dict[str, str] = dict.fromkeys(("y_ptr", "x_ptr", "weight_ptr", "bias_ptr"), f"*{dtype}")
    wide = dtype == "fp32"
    common: dict[str, Any] = {"SEGMENTS": 8, "HAS_BIAS": True, "PDL": True}
    compile_kernel(
        linear._product_kernel,
        {"num_warps": 4, "num_stages": 2 if wide else 4},
        types,
        **common,
        IN=12_288,
        ROWS=linear._ROWS,
        TOKENS=linear._TOKENS,
        BLOCK_K=32 if wide else 64,
        IS_SPLIT=is_split,
        PRECISION="ieee" if wide else "tf32",
    )
    if is_split:
        compile_kernel(linear._sum_kernel, {"num_warps": 4}, types, **common, BLOCK=1024)


def segments(dtype: str, *, head_dim: int, is_merged: bool) -> None:
    types: dict[str, str] = dict.fromkeys(("out_ptr", "q_ptr", "kv_ptr"), f"*{dtype}")
    types |= {"page_table_ptr": "*i32", "places_ptr": "*i32", "scale_log2": "fp32"}
    sizes: dict[str, Any] = {"KV_HEADS": 8, "GROUP": 4, "HEAD_DIM": head_dim, "GROUP_BLOCK": 4}
    sizes |= {"HEAD_BLOCK": head_dim, "SEGMENT": attention.SEGMENT, "PDL": True}
    wide = dtype == "fp32"
    compile_kernel(
        attention._segments_kernel,
        {"num_warps": 4, "num_stages": 2},
        types,
        **sizes,
        PAGE=16,
        BLOCK_M=32 if wide else 64,
        BLOCK_N=32 if wide or head_dim > 128 else 64,
        IS_MERGED=is_merged,
        PRECISION="ieee" if wide else "tf32",
    )
    if not is_merged:
        compile_kernel(attention._merge_kernel, {"num_warps": 4}, types, **sizes)


def draws() -> None:
    types = {"index_ptr": "*i32", "seeds_ptr": "*i64", "positions_ptr": "*i64"}
    compile_kernel(sampling._draw_kernel, {"num_warps": 4}, types, BLOCK=2048, PDL=True)
    compile_kernel(sampling._logsumexp_kernel, {"num_warps": 16}, types, BLOCK=8192, PDL=True)
    for is_counted, limits in ((True, "*i64"), (False, "*fp32")):
        compile_kernel(
            cut._cut_kernel,
            {"num_warps": 16},
            {"limits_ptr": limits},
            BLOCK=cut._TOKENS_AT_ONCE,
            THRESHOLDS=cut._THRESHOLDS,
            COUNTED=is_counted,
            PDL=True,
        )


def main() -> None:
    draws()
    for dtype, head_dims in (("bf16", (128, 256)), ("fp32", (128,))):
        for is_split in (True, False):
            product(dtype, is_split=is_split)
        for head_dim in head_dims:
            for is_merged in (True, False):
                segments(dtype, head_dim=head_dim, is_merged=is_merged)


if __name__ == "__main__":
    main()
