"""An adapter sent as messages through a frontend to the store answers like the same one from disk."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from peft import PeftModel
from transformers import AutoModelForCausalLM

from cli.uploading import folder_config, folder_tensors, messages, upload
from tests.support.answers import ANSWER_SECONDS, question
from tests.support.service_stack import DEMO, ROOT, Stack, stack_at

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stack")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(folder: Path) -> AsyncIterator[Stack]:
    async with stack_at(folder, roots=(DEMO / "adapters", folder)) as stack:
        yield stack


async def test_an_upload_answers_like_its_folder(stack: Stack) -> None:
    adapter = DEMO / "adapters" / "attention"

    async def send(name: str) -> Any:
        content = messages(name, folder_config(adapter), folder_tensors(adapter))
        return await upload(stack.adapters, content, deadline=ANSWER_SECONDS)

    sent = await send("sent")
    assert sent.changed
    answer = await stack.answer(question("What is the password?", "sent", max_tokens=8))
    await stack.load("loaded", adapter)
    expected = await stack.answer(question("What is the password?", "loaded", max_tokens=8))
    assert answer.token_ids == expected.token_ids
    again = await send("loaded")
    assert not again.changed
    assert again.adapter.digest == sent.adapter.digest


async def test_the_training_loop_of_the_docs_serves_what_it_has_learnt(stack: Stack, folder: Path) -> None:
    """Its code as it stands, but for the address: of a model in memory, then of the same after a step."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "uploads.md").read_text(), flags=re.DOTALL)
    base = AutoModelForCausalLM.from_pretrained(DEMO / "qwen3-tiny")
    model = PeftModel.from_pretrained(base, str(DEMO / "adapters" / "attention"))
    # Where PEFT looks for the base's configuration, or it asks the hub.
    model.peft_config["default"].base_model_name_or_path = str(DEMO / "qwen3-tiny")
    model.save_pretrained(str(folder / "saved"))
    example: dict[str, Any] = {}
    exec(code.replace("127.0.0.1:50051", stack.frontend.address), example)
    published = await example["publish"](model, "trained")
    saved = await stack.load("saved", folder / "saved")
    assert published.adapter.digest == saved.digest
    learnt = next(value for name, value in model.named_parameters() if "lora_B" in name)
    learnt.data += 1.0
    moved = await example["publish"](model, "trained")
    assert moved.changed
    assert moved.adapter.digest != saved.digest
    answer = await stack.answer(question("What is the password?", "trained", max_tokens=8))
    assert answer.digest == moved.adapter.digest
