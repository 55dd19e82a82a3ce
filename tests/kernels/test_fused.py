"""The fused steps against their definitions: odd sizes, poisoned memory, places that store nothing."""

from collections.abc import Callable

import pytest
import torch

from kernels.fused import gpu, reference

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3}


def near(out: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    limit = TOLERANCE[out.dtype]
    torch.testing.assert_close(out, expected, rtol=limit, atol=2 * limit, msg=lambda m: f"{what}: {m}")


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_delta_in_parts_is_summed(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, delta = torch.randn(3, 77, device=DEVICE).to(dtype), torch.randn(4, 3, 77, device=DEVICE)
    weight, expected_x = torch.randn(77, device=DEVICE).to(dtype), x.clone()
    expected = reference.add_norm(expected_x, delta, weight, 1e-5)
    near(gpu.add_norm(x, delta, weight, 1e-5), expected, "norm")
    near(x, expected_x, "sum")


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("adds", [True, False])
def test_add_norm(dtype: torch.dtype, adds: bool) -> None:
    torch.manual_seed(0)
    x, delta = (torch.randn(3, 77, device=DEVICE).to(dtype) for _ in range(2))
    weight, expected_x = torch.randn(77, device=DEVICE).to(dtype), x.clone()
    expected = reference.add_norm(expected_x, delta if adds else None, weight, 1e-5)
    near(gpu.add_norm(x, delta if adds else None, weight, 1e-5), expected, "norm")
    assert torch.equal(x, expected_x)
    assert gpu.add_norm(x[:0], None, weight, 1e-5).shape == (0, 77)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(6, 2, 20), (7, 7, 16)])
def test_rotate_store(dtype: torch.dtype, normed: bool, heads: int, kv_heads: int, head_dim: int) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(4, (heads + 2 * kv_heads) * head_dim, device=DEVICE).to(dtype)
    rotary = (
        torch.randn(9, head_dim, device=DEVICE).to(dtype),
        torch.randn(9, head_dim, device=DEVICE).to(dtype),
    )
    q_norm, k_norm = torch.randn(2, head_dim, device=DEVICE).to(dtype)
    norms = (q_norm, k_norm) if normed else None
    kv = torch.full((12, 2, kv_heads, head_dim), 7.0, dtype=dtype, device=DEVICE)
    places, positions = (torch.tensor(ids, device=DEVICE) for ids in ([5, -1, 0, 11], [8, 0, 0, 3]))
    expected_kv = kv.clone()
    expected = reference.rotate_store(qkv.clone(), expected_kv, places, rotary, positions, norms, 1e-5)
    q = gpu.rotate_store(qkv, kv, places.int(), rotary, positions.int(), norms, 1e-5)
    assert q.shape == (4, heads, head_dim)
    near(q, expected, "queries")
    near(kv, expected_kv, "cache")
    untouched = [place for place in range(12) if place not in (5, 0, 11)]
    assert (kv[untouched] == 7).all()

    parts = torch.randn(3, *qkv.shape, device=DEVICE)
    expected = reference.rotate_store(parts, expected_kv, places, rotary, positions, norms, 1e-5)
    q = gpu.rotate_store(parts, kv, places.int(), rotary, positions.int(), norms, 1e-5)
    near(q, expected, "queries of parts")
    near(kv, expected_kv, "cache of parts")


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_silu_mul(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    gate_up = torch.randn(3, 2 * 1030, device=DEVICE).to(dtype) * 5
    gate_up[0, :2] = torch.tensor([-1e4, 1e4])
    near(gpu.silu_mul(gate_up, dtype), reference.silu_mul(gate_up, dtype), "product")
    parts = torch.randn(3, 2, 2 * 1030, device=DEVICE)
    near(gpu.silu_mul(parts, dtype), reference.silu_mul(parts, dtype), "product of parts")


def test_silu_mul_of_more_pairs_than_a_grid_has_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    grids = []

    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            grids.append(grid)
            return lambda *args, **named: None

    monkeypatch.setattr(gpu, "_silu_mul_kernel", Kernel())
    gpu.silu_mul(torch.empty(70_000, 2 * 1030, device="meta"))
    assert grids == [(2 * 70_000,)]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("inputs", [96, 1024], ids=["one launch", "split"])
@pytest.mark.parametrize("tokens", [0, 1, 5, 33])
def test_linear_silu_mul(dtype: torch.dtype, inputs: int, tokens: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(tokens, inputs, device=DEVICE).to(dtype)
    weight = (torch.randn(2 * 40, inputs, device=DEVICE) * inputs**-0.5).to(dtype)
    for bias in (None, torch.randn(2 * 40, device=DEVICE).to(dtype)):
        expected = reference.linear_silu_mul(x, weight, bias)
        near(gpu.linear_silu_mul(x, weight, bias), expected, "product")


def test_greedy() -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 9001, device=DEVICE)
    logits[0, [4095, 4096, 9000]] = 9.0  # equals in three chunks: the first wins
    logits[1, 9000] = 9.0
    logits[2, :] = float("-inf")
    logits[3, 17] = float("inf")
    assert gpu.greedy(logits).tolist() == [4095, 9000, 0, 17, int(logits[4].argmax())]
    assert gpu.greedy(logits.half()[:, ::1]).tolist()[:2] == [4095, 9000]
    logits[0, 3] = logits[1, 5000:9000] = logits[4] = float("nan")  # never the largest
    assert gpu.greedy(logits).tolist() == [4095, 9000, 0, 17, 0]
