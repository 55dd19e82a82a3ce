"""An adapter sent as messages through a frontend to the store answers like the same one from disk."""

from pathlib import Path

from cli.uploading import folder_config, folder_tensors, messages, upload
from tests.support.execsvc_stack import DEMO, question, stack_at


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
