"""An adapter sent as messages through a frontend to the store answers like the same one from disk."""

import re
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import AutoModelForCausalLM

from cli.uploading import folder_config, folder_tensors, messages, upload
from tests.support.service_stack import DEMO, ROOT, question, stack_at


async def test_an_upload_answers_like_its_folder(tmp_path: Path) -> None:
    folder = DEMO / "adapters" / "attention"
    async with stack_at(tmp_path, roots=(DEMO / "adapters",)) as stack:
        sent = await upload(
            stack.adapters, messages("sent", folder_config(folder), folder_tensors(folder)), deadline=60
        )
        assert sent.changed
        answer = await stack.answer(question("What is the password?", "sent", max_tokens=8))
        await stack.load("loaded", folder)
        expected = await stack.answer(question("What is the password?", "loaded", max_tokens=8))
        assert answer.token_ids == expected.token_ids
        again = await upload(
            stack.adapters, messages("loaded", folder_config(folder), folder_tensors(folder)), deadline=60
        )
        assert not again.changed
        assert again.adapter.digest == sent.adapter.digest


async def test_the_training_loop_of_the_docs_serves_what_it_has_learnt(tmp_path: Path) -> None:
    """Its code as it stands, but for the address: of a model in memory, then of the same after a step."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "uploads.md").read_text(), flags=re.DOTALL)
    base = AutoModelForCausalLM.from_pretrained(DEMO / "qwen3-tiny")
    model = PeftModel.from_pretrained(base, str(DEMO / "adapters" / "attention"))
    # Where PEFT looks for the base's configuration, or it asks the hub.
    model.peft_config["default"].base_model_name_or_path = str(DEMO / "qwen3-tiny")
    model.save_pretrained(str(tmp_path / "saved"))
    async with stack_at(tmp_path, roots=(tmp_path / "saved",)) as stack:
        example: dict[str, Any] = {}
        exec(code.replace("127.0.0.1:50051", stack.frontend.address), example)
        published = await example["publish"](model, "trained")
        folder = await stack.load("loaded", tmp_path / "saved")
        assert published.adapter.digest == folder.digest
        learnt = next(value for name, value in model.named_parameters() if "lora_B" in name)
        learnt.data += 1.0
        moved = await example["publish"](model, "trained")
        assert moved.changed
        assert moved.adapter.digest != folder.digest
        answer = await stack.answer(question("What is the password?", "trained", max_tokens=8))
        assert answer.digest == moved.adapter.digest
