"""Compiles every kernel for sm_90, on a machine without a GPU; run in a process without the interpreter.

python -m tests.support.kernels_compile
"""

from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels import begin
from kernels.attention import paged
from kernels.attention.decode import Blocks
from kernels.attention.decode_kernel import decode_kernel
from kernels.fused import gpu as fused_kernels
from kernels.linear import matrix, small_batch
from kernels.linear.tiles import choose
from kernels.lora import beside_matrix, beside_vector, gpu_kernels, prompt_shrink
from kernels.lora import gated as lora_gated
from kernels.lora import gpu_tiles as lora_tiles
from kernels.lora import streamed_expand as lora_streamed
from kernels.lora.beside_tiles import choose as choose_beside
from kernels.sampling import largest

TARGET = GPUTarget("cuda", 90, 32)
SHARED_MEMORY = 227 << 10
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
LORA = {
    "places_ptr": "*i32",
    "rows_ptr": "*i64",
    "scaling_ptr": "*fp32",
    "table_slices": "i32",
    "first_slice": "i32",
    "tiles": "i32",
    "tokens": "i32",
    "buffer_rank": "i32",
}


def compile_kernel(kernel: Any, options: dict[str, int], types: dict[str, str], **constexprs: Any) -> None:
    """Arguments without a type are int32."""
    kernel = getattr(kernel, "jit", kernel)
    names = list(kernel.arg_names)
    signature = {
        name: "constexpr"
        if name in constexprs
        else types.get(name, "*fp32" if name.endswith("_ptr") else "i32")
        for name in names
    }
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name.endswith("_ptr")}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constexprs, attrs=aligned)
    compiled = triton.compile(source, target=TARGET, options=options)
    assert compiled.metadata.shared <= SHARED_MEMORY, (kernel.__name__, constexprs, compiled.metadata.shared)
    print(kernel.__name__, constexprs, f"{compiled.metadata.shared} bytes of shared memory")


def attention(dtype: str, *, group: int, head_dim: int, queries: int, splits: int) -> None:
    blocks = paged.Blocks.choose(group, head_dim, queries, DTYPES[dtype])
    types = dict.fromkeys(("out_ptr", "q_ptr", "kv_ptr"), f"*{dtype}")
    types |= {"page_table_ptr": "*i32", "places_ptr": "*i32", "scale_log2": "fp32"}
    compile_kernel(
        paged._attend_kernel,
        {"num_warps": blocks.warps, "num_stages": blocks.stages},
        types,
        PAGE=16,
        KV_HEADS=8,
        GROUP=group,
        HEAD_DIM=head_dim,
        GROUP_BLOCK=group,
        HEAD_BLOCK=head_dim,
        BLOCK_M=blocks.m,
        BLOCK_N=blocks.n,
        SPLITS=splits,
        PRECISION="ieee" if dtype == "fp32" else "tf32",
        PDL=True,
    )
    if splits > 1:
        sizes = {"HEADS": 8 * group, "HEAD_DIM": head_dim, "HEAD_BLOCK": head_dim, "SPLITS": splits}
        sizes["PDL"] = True
        compile_kernel(paged._combine_kernel, {"num_warps": 4}, types, **sizes)


def decode(dtype: str, *, head_dim: int, splits: int, parts: int) -> None:
    blocks = Blocks.choose(splits, head_dim, DTYPES[dtype])
    whole = ("out_ptr", "kv_ptr", "cos_ptr", "sin_ptr", "q_norm_ptr", "k_norm_ptr")
    types = dict.fromkeys(whole, f"*{dtype}") | {"qkv_ptr": "*fp32" if parts else f"*{dtype}"}
    indices = ("arrived_ptr", "page_table_ptr", "places_ptr", "kv_tokens_ptr")
    types |= dict.fromkeys(indices, "*i32") | {"scale_log2": "fp32", "eps": "fp32"}
    compile_kernel(
        decode_kernel,
        {"num_warps": blocks.warps, "num_stages": 1},
        types,
        PAGE=16,
        KV_HEADS=8,
        GROUP=4,
        HALF=head_dim // 2,
        GROUP_BLOCK=4,
        BLOCK_HALF=head_dim // 2,
        BLOCK_M=16,
        BLOCK_N=blocks.keys,
        IS_SHARED=splits > 1,
        BLOCK_C=min(splits, 1024 // head_dim),
        NORM=True,
        PARTS=parts,
        REGISTERS=blocks.registers,
        PRECISION="ieee" if dtype == "fp32" else "tf32",
        PDL=True,
    )


def lora(
    dtype: str, *, slices: int, block_t: int, block_r: int, gathered: bool = False, is_added: bool = True
) -> None:
    types = LORA | {"pool_ptr": f"*{dtype}", "x_ptr": f"*{dtype}", "y_ptr": f"*{dtype}"}
    common: dict[str, Any] = {"UNIT": 64, "SLICES": slices, "BLOCK_T": block_t, "BLOCK_R": block_r}
    common["PRECISION"] = "ieee" if dtype == "fp32" else "tf32"
    common["PDL"] = True
    tokens, rank = 128 if block_t == 16 else 2048, block_r
    halves = dtype != "fp32"
    sizes: dict[str, Any] = {"block": block_t, "count": 64, "rank": rank, "halves": halves}
    cut = lora_tiles.choose(tokens, 12_288, **sizes, fixed_order=False, is_added=is_added)
    compile_kernel(
        gpu_kernels.shrink_kernel,
        {"num_warps": 4, "num_stages": 3},
        types,
        **(common | {"BLOCK_R": cut.block_r}),
        BLOCK_K=cut.block_k,
        K_SPLITS=cut.splits,
        IS_ONE_PASS=cut.is_one_pass,
    )
    k_splits = 1 if gathered or tokens > 256 else cut.splits
    compile_kernel(
        gpu_kernels.expand_kernel,
        {"num_warps": 4, "num_stages": 2 if k_splits == 1 else 1},
        types | {"source_ptr": "*i64" if gathered else "*fp32", "bias_ptr": f"*{dtype}"},
        **(common | {"BLOCK_R": cut.block_e}),
        VECTOR_UNIT=32,
        BLOCK_N=cut.block_n,
        K_SPLITS=k_splits,
        GATHERED=gathered,
        HALVES=halves,
        IS_ONE_PASS=True,
        IS_ADDED=is_added,
        HAS_BIAS=not is_added,
    )


def prompt(inputs: int, slices: int, *, rank: int, block: int = 64, count: int = 16) -> None:
    cut = lora_tiles.choose_prompt(inputs, slices=slices, block=block, count=count, rank=rank)
    compile_kernel(
        prompt_shrink.prompt_shrink_kernel,
        {"num_warps": cut.warps, "num_stages": cut.stages},
        LORA | {"x_ptr": "*bf16", "pool_ptr": "*bf16", "arrived_ptr": "*i32"},
        UNIT=64,
        SLICES=slices,
        TOGETHER=cut.together,
        PARTS=block // cut.tokens,
        BLOCK_T=cut.tokens,
        BLOCK_R=cut.ranks,
        BLOCK_K=cut.block_k,
        K_SPLITS=cut.splits,
        PDL=True,
    )


def streamed_expand(slices: int) -> None:
    compile_kernel(
        lora_streamed.streamed_expand_kernel,
        {"num_warps": 4, "num_stages": 3},
        LORA | dict.fromkeys(("y_ptr", "bias_ptr", "pool_ptr"), "*bf16"),
        UNIT=64,
        SLICES=slices,
        BLOCK_T=16,
        BLOCK_R=64,
        BLOCK_N=128,
        BLOCKS=4,
        STAGES=3,
        HAS_BIAS=True,
        PDL=True,
    )


def gated(dtype: str, *, block: int, rank: int) -> None:
    cut = lora_tiles.choose_gated(block=block, rank=rank)
    types = LORA | dict.fromkeys(("out_ptr", "gate_up_ptr", "pool_ptr"), f"*{dtype}")
    compile_kernel(
        lora_gated.silu_mul_kernel,
        {"num_warps": cut.warps, "num_stages": cut.stages},
        types,
        UNIT=64,
        WIDE=12_288,
        PARTS=block // cut.tokens,
        PLAIN_T=4,
        PLAIN_N=1024,
        BLOCK_T=cut.tokens,
        BLOCK_R=rank,
        BLOCK_N=cut.columns,
        BLOCKS=cut.blocks,
        STAGES=cut.stages,
        K_SPLITS=1,
        PDL=True,
    )


def fused(dtype: str) -> None:
    halves = ("out_ptr", "x_ptr", "delta_ptr", "weight_ptr", "qkv_ptr", "kv_ptr", "cos_ptr", "sin_ptr")
    types = dict.fromkeys((*halves, "q_norm_ptr", "k_norm_ptr", "gate_up_ptr", "logits_ptr"), f"*{dtype}")
    types |= dict.fromkeys(("places_ptr", "positions_ptr", "index_ptr"), "*i32")
    types |= {"eps": "fp32", "tokens_ptr": "*i64"}
    heads: dict[str, Any] = {"HEADS": 32, "KV_HEADS": 8, "HALF": 64, "BLOCK_HEADS": 8, "BLOCK_HALF": 64}
    heads |= {"NORM": True, "PARTS": 0}
    for kernel, warps, constexprs in (
        (fused_kernels._add_norm_kernel, 8, {"HIDDEN": 4096, "BLOCK": 4096, "PARTS": 1}),
        (fused_kernels._rotate_store_kernel, 4, heads),
        (fused_kernels._silu_mul_kernel, 4, {"WIDE": 12288, "BLOCK": 1024, "PARTS": 0}),
        (largest._chunk_argmax_kernel, 8, {"BLOCK": 4096}),
        (largest._argmax_kernel, 1, {"BLOCK": 64}),
    ):
        compile_kernel(kernel, {"num_warps": warps}, types, **constexprs, PDL=True)


def linear(tokens: int, outputs: int, inputs: int, *, gated: bool = False) -> None:
    tile = choose(tokens, outputs, inputs, gated=gated)
    assert tile is not None
    types = dict.fromkeys(("y_ptr", "x_ptr", "weight_ptr", "bias_ptr"), "*bf16") | {"arrived_ptr": "*i32"}
    common = {"IN": inputs, "BLOCK_K": tile.block_k, "IS_GATED": gated, "HAS_BIAS": True, "PDL": True}
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    if tile.tokens == 1:
        compile_kernel(small_batch._vector_kernel, options, types, **common, ROWS=tile.rows)
    else:
        rows = 1 << (tile.rows.bit_length() - 1)
        more = {"ROWS": rows, "MORE": tile.rows - rows, "TOKENS": tile.tokens, "STAGES": tile.stages}
        more |= {"SPLITS": tile.splits, "IS_SUMMED": True, "PREFETCH": tile.prefetch}
        compile_kernel(matrix.matrix_kernel, options, types, **common, **more)


def beside(tokens: int, outputs: int, inputs: int, slices: int, *, gated: bool = False) -> None:
    tile, chunks, span = choose_beside(tokens, outputs, inputs, rank=16, tiles=tokens)
    types = LORA | dict.fromkeys(("x_ptr", "weight_ptr", "bias_ptr", "pool_ptr"), "*bf16")
    types |= {"arrived_ptr": "*i32", "out_ptr": "*bf16" if gated else "*fp32"}
    common = {"IN": inputs, "ROWS": tile.rows, "BLOCK_K": tile.block_k, "HAS_BIAS": True, "PDL": True}
    common |= {"GRAIN": 8, "BLOCK_E": 64, "SPAN": span, "CHUNKS": chunks, "SLICES": slices, "UNIT": 64}
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    if tile.tokens == 1:
        compile_kernel(beside_vector.vector_kernel, options, types, **common)
    else:
        more = {"TOKENS": tile.tokens, "SPLITS": tile.splits, "PREFETCH": tile.prefetch}
        more |= {"IS_GATED": gated, "PARTS": 1}
        compile_kernel(beside_matrix.matrix_kernel, options, types, **common, **more)


def main() -> None:
    types = {"ids_ptr": "*i64", "int64_rows_ptr": "*i64", "last_sampled_ptr": "*i64"}
    types |= dict.fromkeys(("sent_ids_ptr", "rows_ptr", "changes_ptr", "page_table_ptr"), "*i32")
    compile_kernel(begin._begin_kernel, {"num_warps": 4}, types, BLOCK=128)
    fused("bf16")
    decode("bf16", head_dim=128, splits=4, parts=0)
    for tokens, outputs, inputs in ((1, 4096, 12_288), (8, 4096, 4096), (32, 6144, 4096), (16, 1000, 96)):
        linear(tokens, outputs, inputs)
    for tokens in (1, 8, 128):
        linear(tokens, 24_576, 4096, gated=True)
    for tokens in (64, 128):
        linear(tokens, 151_936, 4096)
    for tokens, outputs, inputs, slices in ((1, 4096, 12_288, 1), (8, 6144, 4096, 3), (32, 24_576, 4096, 2)):
        beside(tokens, outputs, inputs, slices, gated=slices == 2)
    for dtype, head_dims in (("bf16", (64, 128, 256)), ("fp32", (128,))):
        for head_dim in head_dims:
            queries = paged.queries_per_tile(4, head_dim, DTYPES[dtype])
            attention(dtype, group=4, head_dim=head_dim, queries=queries, splits=1)
            attention(dtype, group=4, head_dim=head_dim, queries=1, splits=8)
            if head_dim > 64:
                decode(dtype, head_dim=head_dim, splits=32 if head_dim == 128 else 1, parts=2)
        lora(dtype, slices=3, block_t=16, block_r=16)
        lora(dtype, slices=2, block_t=16, block_r=16, is_added=False)
        lora(dtype, slices=2, block_t=64, block_r=64, is_added=False)
        lora(dtype, slices=2, block_t=16, block_r=64)
        lora(dtype, slices=2, block_t=16, block_r=64, is_added=False)
        lora(dtype, slices=1, block_t=32, block_r=32, gathered=True)
    gated("bf16", block=16, rank=16)
    gated("bf16", block=64, rank=64)
    prompt(4096, 3, rank=16)
    prompt(4096, 2, rank=64)
    prompt(12_288, 1, rank=64, block=16, count=64)
    streamed_expand(3)


if __name__ == "__main__":
    main()
