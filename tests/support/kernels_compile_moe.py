"""Compiles the kernels of experts and of their LoRA for sm_90; see `kernels_compile`.

python -m tests.support.kernels_compile_moe
"""

from typing import Any

from kernels.moe import gpu_products, gpu_routing, gpu_sums, gpu_vectors
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


def types_of(dtype: str) -> dict[str, str]:
    types = dict.fromkeys(INTEGERS, "*i32") | dict.fromkeys(HALVES, f"*{dtype}")
    return types | {"rows_ptr": "*i64"}


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


def lora(dtype: str, tokens: int, rank: int) -> None:
    types, few = types_of(dtype), tokens <= 128
    halves, run = dtype != "fp32", gpu_runs.run_block(tokens, TOP_K, EXPERTS)
    common: dict[str, Any] = {"UNIT": 64, "TOP_K": TOP_K, "ALONE": tokens == 1, "PDL": True}
    common["PRECISION"] = "tf32" if halves else "ieee"
    pair = {"SLICES": 2, "SPLITS": 4, "BLOCK_B": run} | common
    shrink = {"IN": HIDDEN, "PAIRS_OF_ROW": TOP_K, "READY": True, "BLOCK_K": 128 if halves else 64}
    few_warps = {"num_warps": 4, "num_stages": 4}
    compile_kernel(gpu._shrink_kernel, few_warps, types, **shrink, BLOCK_R=16 if few else rank, **pair)
    few_warps["num_stages"] = 2
    expand = {"BLOCK_R": rank, "HALVES": halves}
    compile_kernel(gpu._expand_kernel, few_warps, types, **expand, BLOCK_N=128, **pair)
    if tokens == 1:
        return
    together(dtype, tokens, rank, shares=False)


def together(dtype: str, tokens: int, rank: int, *, shares: bool) -> None:
    types, tiles = types_of(dtype), fused.with_lora(choose(tokens, TOP_K, EXPERTS))
    common: dict[str, Any] = {"UNIT": 64, "TOP_K": TOP_K, "HALVES": dtype != "fp32", "PDL": True}
    common |= {"BLOCK_R": rank, "PRECISION": "ieee" if dtype == "fp32" else "tf32"}
    if tiles.down.pairs >= prompts.LEAST_PAIRS and not shares:
        of_prompts(dtype, tiles, rank)
        return
    for tile, inputs, is_down in ((tiles.gate_up, HIDDEN, False), (tiles.down, WIDE, True)):
        options, constants = cut(tile)
        constants |= {"IN": inputs, "IS_DOWN": is_down, "BLOCK_S": max(1, 64 // rank), "SHARES": shares}
        constants["ALIGNED"] = True
        constants["AHEAD"] = tile.pairs * rank <= 1024
        constants["EARLY"] = constants["AHEAD"] and rank == 16
        compile_kernel(fused_kernels.product_kernel, options, types, **constants, **common)
    if shares:
        sizes = {"HIDDEN": HIDDEN, "BLOCK_T": 16, "BLOCK_D": 128}
        compile_kernel(fused_sum._sum_kernel, {"num_warps": 4}, types, **sizes, **common)


def of_prompts(dtype: str, tiles: Tiles, rank: int) -> None:
    types = types_of(dtype) | {"shrunk_ptr": f"*{dtype}", "found_ptr": "*i64"}
    common: dict[str, Any] = {"UNIT": 64, "TOP_K": TOP_K, "PDL": True, "BLOCK_R": rank}
    common |= {"PARTS": 1 if dtype == "fp32" else 2, "PRECISION": "ieee" if dtype == "fp32" else "tf32"}
    tiles, cut_a = prompts.with_lora(tiles), prompts.SHRINK
    for tile, inputs, slices in ((tiles.gate_up, HIDDEN, 2), (tiles.down, WIDE, 1)):
        common |= {"IN": inputs, "IS_DOWN": slices == 1, "BLOCK_B": tile.pairs}
        rows = min(cut_a.rows, slices * rank)
        options = {"num_warps": cut_a.warps, "num_stages": cut_a.stages}
        sizes = {"ROWS": rows, "BLOCK_P": cut_a.pairs, "BLOCK_K": cut_a.block_k}
        compile_kernel(prompts_kernels.shrink_kernel, options, types, **sizes, **common)
        options, sizes = {"num_warps": tile.warps, "num_stages": tile.stages}, {"ROWS": tile.rows}
        sizes |= {"BLOCK_K": prompts.INPUTS, "ALIGNED": True}
        compile_kernel(prompts_kernels.product_kernel, options, types, **sizes, **common)


def main() -> None:
    routing()
    vectors(16)
    lora("bf16", 1, 16)
    for dtype, tokens, rank in (("bf16", 32, 64), ("bf16", 1024, 16), ("fp32", 40, 16)):
        base(dtype, tokens)
        lora(dtype, tokens, rank)
    together("bf16", 1024, 64, shares=True)


if __name__ == "__main__":
    main()
