"""Settings: what is refused, and that the message says what to do."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from executor.app import run
from executor.base.build import build_base
from executor.config import ExecutorConfig
from tests.support.executor_service import CONTEXT, write_model
from tests.support.waiting import WAIT_SECONDS

BAD = {
    "cuda": ({"device": "cuda:1"}, "CUDA_VISIBLE_DEVICES"),
    "device": ({"device": "tpu"}, "choose one of cpu, cuda"),
    "load format": ({"load_format": "gguf"}, "choose one of safetensors, dummy"),
    "dtype": ({"dtype": "int8"}, "choose one of float32, bfloat16, float16"),
    "policy": ({"queue_policy": "random"}, "choose one of fair, pack"),
    "runner": ({"runner": "magic"}, "choose one of torch, arithmetic"),
    "address": ({"listen": "50052"}, "give host:port or unix:/path"),
    "superscript": ({"listen": "host:8²"}, "give host:port or unix:/path"),
    "port": ({"store": "host:70000"}, "give host:port or unix:/path"),
    "rows": ({"max_running": 0}, "choose from 1"),
    "tokens": ({"max_step_tokens": 10}, "must hold one token of each row"),
    "grid": ({"max_step_tokens": 65_536}, "choose from 1 to 65535"),
    "page size": ({"page_size": 17}, "choose 8, 16, 32, 64 or 128"),
    "pages": ({"kv_pages": 0}, "or leave it out"),
    "no slots": ({"store": "unix:/s", "adapter_slots": 0}, "or leave out the store"),
    "rank": ({"max_lora_rank": 12}, "multiple of 8"),
    "NaN": ({"drain_seconds": float("nan")}, "choose from 0"),
}


@pytest.mark.parametrize(("settings", "advice"), BAD.values(), ids=BAD.keys())
def test_a_setting_that_cannot_work_is_refused_with_advice(
    tmp_path: Path, settings: dict[str, Any], advice: str
) -> None:
    with pytest.raises(ValueError, match=advice):
        ExecutorConfig(model_dir=write_model(tmp_path), **settings)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Hugging Face checkpoint"):
        ExecutorConfig(model_dir=tmp_path)


def test_pages_follow_the_budget_but_not_beyond_what_all_rows_can_fill(tmp_path: Path) -> None:
    model_dir = write_model(tmp_path)

    def pages(**settings: Any) -> int:
        config = ExecutorConfig(model_dir=model_dir, runner="arithmetic", **settings)
        return build_base(config, lambda done, total: None).scheduling.pages

    assert pages(kv_pages=7) == 7
    # One layer, 16 tokens of a K and a V of 8 numbers with 4 bytes each.
    assert pages(kv_bytes=5 * 1024 + 100) == 5
    assert pages(max_running=3) == 3 * CONTEXT // 16
    with pytest.raises(ValueError, match="give more"):
        pages(kv_bytes=1000)


def test_host_memory_holds_whole_pages(tmp_path: Path) -> None:
    model_dir = write_model(tmp_path)
    config = ExecutorConfig(model_dir=model_dir, runner="arithmetic", kv_host_bytes=5 * 1024 + 100)
    assert build_base(config, lambda done, total: None).scheduling.host_pages == 5


def test_options_of_the_model_that_nobody_reads_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model_dir = write_model(tmp_path)
    path = model_dir / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"unheard_of": 1}))
    build_base(ExecutorConfig(model_dir=model_dir, runner="arithmetic", kv_pages=8), lambda done, total: None)
    assert "what nobody here reads: unheard_of" in caplog.text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_said_so(tmp_path: Path) -> None:
    config = ExecutorConfig(model_dir=write_model(tmp_path), device="cuda")
    with pytest.raises(ValueError, match="finds no GPU"):
        build_base(config, lambda done, total: None)


def test_dummy_weights_need_no_checkpoint(tmp_path: Path) -> None:
    model_dir = write_model(tmp_path)
    assert not list(model_dir.glob("*.safetensors"))
    base = build_base(
        ExecutorConfig(model_dir=model_dir, load_format="dummy", kv_pages=8), lambda done, total: None
    )
    assert base.layout.base_digest


async def test_run_serves_until_told_to_stop(tmp_path: Path) -> None:
    config = ExecutorConfig(
        model_dir=write_model(tmp_path / "model"), listen="127.0.0.1:0", runner="arithmetic", kv_pages=8
    )
    stop = asyncio.Event()
    addresses: list[str] = []

    def ready(address: str) -> None:
        addresses.append(address)
        stop.set()

    await asyncio.wait_for(run(config, stop=stop, ready=ready), WAIT_SECONDS)
    assert addresses[0].startswith("127.0.0.1:")
    assert not addresses[0].endswith(":0")


async def test_run_says_which_file_is_missing(tmp_path: Path) -> None:
    model_dir = write_model(tmp_path)
    (model_dir / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        await run(ExecutorConfig(model_dir=model_dir, runner="arithmetic"))
