"""Every kernel compiles for the GPU that serves, at the block sizes that it is launched with."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

pytest.importorskip("triton")


KERNELS = {
    "tests.support.kernels_compile": {
        "_begin_kernel",
        "_attend_kernel",
        "_combine_kernel",
        "decode_kernel",
        "shrink_kernel",
        "expand_kernel",
        "silu_mul_kernel",
        "prompt_shrink_kernel",
        "streamed_expand_kernel",
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
        "_logsumexp_kernel",
        "_cut_kernel",
    },
    "tests.support.kernels_compile_moe": {
        "_route_kernel",
        "_arrange_kernel",
        "_slots_kernel",
        "_product_kernel",
        "_add_up_kernel",
        "_add_norm_kernel",
        "_gate_up_kernel",
        "_down_kernel",
        "_shrink_kernel",
        "_expand_kernel",
        "_middle_kernel",
        "shrink_kernel",
        "product_kernel",
        "_sum_kernel",
    },
}


@pytest.fixture(scope="module")
def compiling(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, "subprocess.Popen[str]"]]:
    """Processes that compile what was asked for, all at once, with nothing compiled before."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_DISABLE_LINE_INFO"] = "1"
    here = [item for item in request.session.items if item.path == request.path]
    started = {}
    for module in [str(item.callspec.params["module"]) for item in here if isinstance(item, pytest.Function)]:
        cache = str(tmp_path_factory.mktemp("triton"))
        started[module] = subprocess.Popen(
            [sys.executable, "-m", module],
            env=environment | {"TRITON_CACHE_DIR": cache},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    yield started
    for process in started.values():
        process.kill()
        process.communicate()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("module", KERNELS)
def test_kernels_compile_for_sm_90(module: str, compiling: dict[str, "subprocess.Popen[str]"]) -> None:
    process = compiling[module]
    out, err = process.communicate()
    assert process.returncode == 0, err[-4000:]
    assert {line.split()[0] for line in out.splitlines()} == KERNELS[module]
