"""Every kernel compiles for the GPU that serves, at the block sizes that it is launched with."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


KERNELS = {
    "tests.support.kernels_compile": {
        "_attend_kernel",
        "_combine_kernel",
        "decode_kernel",
        "shrink_kernel",
        "expand_kernel",
        "_add_norm_kernel",
        "_rotate_store_kernel",
        "_silu_mul_kernel",
        "_chunk_argmax_kernel",
        "_argmax_kernel",
        "_vector_kernel",
        "vector_kernel",
        "matrix_kernel",
    },
    "tests.support.kernels_compile_fixed": {
        "_product_kernel",
        "_sum_kernel",
        "_segments_kernel",
        "_merge_kernel",
        "_draw_kernel",
        "_best_kernel",
        "_logsumexp_kernel",
        "_cut_kernel",
    },
    "tests.support.kernels_compile_moe": {
        "_route_kernel",
        "_arrange_kernel",
        "_slots_kernel",
        "_product_kernel",
        "_add_up_kernel",
        "_gate_up_kernel",
        "_down_kernel",
        "_shrink_kernel",
        "_expand_kernel",
        "_middle_kernel",
        "product_kernel",
    },
}


@pytest.mark.parametrize("module", KERNELS)
def test_kernels_compile_for_sm_90(module: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", module],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert {line.split()[0] for line in done.stdout.splitlines()} == KERNELS[module]
