"""Compiles the kernels of experts and of their LoRA for sm_90; see `kernels_compile`.

python -m tests.support.kernels_compile_moe
"""

from typing import Any

import torch

from kernels.lora.table import UNIT_BYTES
from kernels.moe import ExpertWeights, gpu_products, gpu_routing, gpu_sums, gpu_vectors
from kernels.moe.tiles import Tile, Tiles, choose
from kernels.moe_lora import (
    fused,
    fused_kernels,
    fused_sum,
    fused_vectors,
    gpu,
    gpu_runs,
    prompts,
    prompts_kernels,
)
from tests.support.kernels_compile import compile_kernel

INTEGERS = (
    "experts_ptr",
    "slots_ptr",
    "order_ptr",
    "runs_ptr",
    "tiles_ptr",
    "places_ptr",
    "turns_ptr",
    "met_ptr",
)
HALVES = ("y_ptr", "x_ptr", "weight_ptr", "pool_ptr", "wide_ptr", "out_ptr", "logits_ptr")
HIDDEN, WIDE, EXPERTS, TOP_K = 2048, 768, 128, 8
WEIGHTS = ExpertWeights(
    torch.empty(EXPERTS, 2 * WIDE, HIDDEN, device="meta"), torch.empty(EXPERTS, HIDDEN, WIDE, device="meta")
)


def types_of(dtype: str) -> dict[str, str]:
    types = dict.fromkeys(INTEGERS, "*i32") | dict.fromkeys(HALVES, f"*{dtype}")
    return types | {"rows_ptr": "*i64"}


def unit(dtype: str) -> int:
    """Numbers of a unit of the pool."""
    return UNIT_BYTES // (4 if dtype == "fp32" else 2)


def cut(tile: Tile) -> tuple[dict[str, int], dict[str, int]]:
    """Launch options, and constants."""
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    return options, {"ROWS": tile.rows, "BLOCK_B": tile.pairs, "BLOCK_K": tile.block_k}


def routing() -> None:
    types = types_of("bf16")
    route: dict[str, Any] = {"EXPERTS": EXPERTS, "TOP_K": TOP_K, "BLOCK_E": 128, "BLOCK_X": 8}
    route |= {"NORMALISED": True, "HAS_PLACES": True, "PDL": True}
    compile_kernel(gpu_routing._route_kernel, {"num_warps": 1}, types, **route)
    arrange: dict[str, Any] = {"TOP_K": TOP_K, "TILE": 16, "RUN": 16, "BLOCK_E": 128}
    arrange |= {"BLOCK_P": 1024, "BLOCK_T": 128, "HAS_RUNS": True, "HAS_TURNS": True, "SHARES": True}
    arrange |= {"PDL": True}
    compile_kernel(gpu_routing._arrange_kernel, {"num_warps": 4}, types, **arrange)
    compile_kernel(gpu_runs._slots_kernel, {"num_warps": 4}, types, BLOCK_T=128, BLOCK_N=32, PDL=True)


def base(dtype: str, tokens: int) -> None:
    types, tiles = types_of(dtype), choose(tokens, TOP_K, EXPERTS)
    precision = "ieee" if dtype == "fp32" else "tf32"
    for tile, inputs, pairs_of_row, activated in (
        (tiles.gate_up, HIDDEN, TOP_K, True),
        (tiles.down, WIDE, 1, False),
    ):
        options, constants = cut(tile)
        compile_kernel(
            gpu_products._product_kernel,
            options,
            types,
            **constants,
            IN=inputs,
            PAIRS_OF_ROW=pairs_of_row,
            ALONE=False,
            ACTIVATED=activated,
            ALIGNED=True,
            PREFETCH=not activated,
            PRECISION=precision,
            PDL=True,
        )
    sizes = {"HIDDEN": HIDDEN, "TOP_K": TOP_K, "BLOCK_D": 512}
    compile_kernel(gpu_products._add_up_kernel, {"num_warps": 2}, types, **sizes, PDL=True)
    sizes = {"HIDDEN": HIDDEN, "TOP_K": TOP_K, "BLOCK": HIDDEN}
    norm = types | {"norm_ptr": f"*{dtype}", "eps": "fp32", "weights_ptr": "*fp32"}
    compile_kernel(gpu_sums._add_norm_kernel, {"num_warps": 4}, norm, **sizes, PDL=True)


def vectors(rank: int) -> None:
    types, lora = types_of("bf16"), {"UNIT": 64}
    more = {"SPLITS": 6, "BLOCK_R": rank}
    middle = {"WIDE": WIDE, "BLOCK_R": rank}
    for kernel, served, constants in (
        (gpu_vectors._gate_up_kernel, gpu_vectors.GATE_UP, {"IN": HIDDEN}),
        (gpu_vectors._down_kernel, gpu_vectors.DOWN, {"IN": WIDE, "BLOCK_X": 8}),
        (fused_vectors._gate_up_kernel, gpu_vectors.GATE_UP, {"IN": HIDDEN} | lora),
        (fused_vectors._middle_kernel, fused_vectors.MIDDLE, middle | lora),
        (fused_vectors._down_kernel, fused_vectors.DOWN, {"IN": WIDE, "BLOCK_X": 8} | lora | more),
    ):
        sizes = dict(served)
        options = {"num_warps": sizes.pop("num_warps")}
        compile_kernel(kernel, options, types, **constants, **sizes, TOP_K=TOP_K, PDL=True)


def hooks(dtype: str, tokens: int) -> None:
    """Of ranks that nothing else serves."""
    types, few = types_of(dtype), tokens <= 128
    halves, run = dtype != "fp32", gpu_runs.run_block(tokens, TOP_K, EXPERTS)
    rank = gpu_runs.block_of_ranks(fused.MOST_RANK + 8)
    common: dict[str, Any] = {"UNIT": unit(dtype), "TOP_K": TOP_K, "ALONE": tokens == 1, "PDL": True}
    common["PRECISION"] = "tf32" if halves else "ieee"
    pair = {"SLICES": 2, "SPLITS": 4, "BLOCK_B": run} | common
    shrink = {"IN": HIDDEN, "PAIRS_OF_ROW": TOP_K, "READY": True, "BLOCK_K": 128 if halves else 64}
    few_warps = {"num_warps": 4, "num_stages": 4}
    compile_kernel(gpu._shrink_kernel, few_warps, types, **shrink, BLOCK_R=16 if few else rank, **pair)
    few_warps["num_stages"] = 2
    expand = {"BLOCK_R": rank, "HALVES": halves}
    compile_kernel(gpu._expand_kernel, few_warps, types, **expand, BLOCK_N=128, **pair)


def together(dtype: str, tokens: int, rank: int, *, shares: bool = False) -> None:
    """As `fused.experts` computes so many tokens."""
    types, tiles = types_of(dtype), fused.with_lora(choose(tokens, TOP_K, EXPERTS))
    block_r = gpu_runs.block_of_ranks(rank)
    common: dict[str, Any] = {"UNIT": unit(dtype), "TOP_K": TOP_K, "PDL": True, "BLOCK_R": block_r}
    common["PRECISION"] = "ieee" if dtype == "fp32" else "tf32"
    if not shares and prompts.serves(tiles.down, rank, tokens * TOP_K, WEIGHTS):
        of_prompts(dtype, prompts.with_lora(tiles), common)
        return
    common["HALVES"] = dtype != "fp32"
    for tile, inputs, is_down in ((tiles.gate_up, HIDDEN, False), (tiles.down, WIDE, True)):
        options, constants = cut(tile)
        if tile.warps == 4 and tile.rows == 64:
            options["maxnreg"] = fused._REGISTERS
        constants |= {"IN": inputs, "IS_DOWN": is_down, "BLOCK_S": max(1, 64 // block_r), "SHARES": shares}
        constants["ALIGNED"] = True
        constants["AHEAD"] = tile.pairs * block_r <= fused._MOST_AHEAD
        constants["EARLY"] = constants["AHEAD"] and block_r <= fused._EARLY_RANK and not shares
        compile_kernel(fused_kernels.product_kernel, options, types, **constants, **common)
    if shares:
        sizes = {"HIDDEN": HIDDEN, "BLOCK_T": 16, "BLOCK_D": 128}
        compile_kernel(fused_sum._sum_kernel, {"num_warps": 4}, types, **sizes, **common)


def of_prompts(dtype: str, tiles: Tiles, common: dict[str, Any]) -> None:
    types = types_of(dtype) | {"shrunk_ptr": f"*{dtype}", "found_ptr": "*i64"}
    parts, cut_a = 1 if dtype == "fp32" else 2, prompts.SHRINK
    for tile, inputs, slices in ((tiles.gate_up, HIDDEN, 2), (tiles.down, WIDE, 1)):
        common |= {"IN": inputs, "IS_DOWN": slices == 1, "BLOCK_B": tile.pairs, "PARTS": parts}
        options = {"num_warps": cut_a.warps, "num_stages": cut_a.stages, "maxnreg": prompts._registers(cut_a)}
        sizes = {"ROWS": min(cut_a.rows, slices * common["BLOCK_R"]), "BLOCK_P": cut_a.pairs}
        sizes["BLOCK_K"] = cut_a.block_k * parts // 2
        compile_kernel(prompts_kernels.shrink_kernel, options, types, **sizes, **common)
        options = {"num_warps": tile.warps, "num_stages": tile.stages, "maxnreg": prompts._registers(tile)}
        sizes = {"ROWS": tile.rows, "BLOCK_K": tile.block_k, "ALIGNED": True}
        compile_kernel(prompts_kernels.product_kernel, options, types, **sizes, **common)


def main() -> None:
    routing()
    vectors(16)
    vectors(64)
    for dtype, tokens in (("bf16", 1), ("bf16", 32), ("bf16", 1024), ("fp32", 40)):
        hooks(dtype, tokens)
    for dtype, tokens in (("bf16", 32), ("bf16", 1024), ("fp32", 40)):
        base(dtype, tokens)
    # Tiles of few pairs; of more, where small ranks are few; prompts' shorter and longer tiles.
    for dtype, tokens, rank in (
        ("bf16", 32, 16),
        ("bf16", 32, 64),
        ("bf16", 512, 16),
        ("bf16", 1024, 16),
        ("bf16", 4096, 64),
        ("fp32", 40, 16),
    ):
        together(dtype, tokens, rank)
    together("bf16", 1024, 64, shares=True)


if __name__ == "__main__":
    main()
