"""Chats of an adapter that brings its own template."""

import grpc
import pytest

from lorikeet.v1 import generation_pb2
from rpc.errors import from_rpc
from tests.support.frontend_harness import running_rig

DIGEST, OTHER = "a" * 64, "b" * 64
CHAT = generation_pb2.ChatPrompt(messages=[generation_pb2.ChatMessage(role="user", content="hi")])
TEMPLATE = "{% for message in messages %}<{{ message.content }}>{% endfor %}"


def prompt_tokens(responses) -> int:
    return responses[-1].summary.usage.prompt_tokens


async def ask(rig, name: str, **prompt):
    sampling = generation_pb2.SamplingParams(max_tokens=2)
    return await rig.generate(adapter=name, sampling=sampling, **(prompt or {"chat": CHAT}))


async def test_an_adapters_chats_are_rendered_with_its_template_fetched_once(model_folder):
    async with running_rig(model_folder) as rig:
        rig.store.templates[DIGEST] = TEMPLATE
        await rig.store.point("own", DIGEST)
        await rig.store.point("plain", OTHER)
        expected = await ask(rig, "own", text="<hi>")
        for _ in range(3):
            assert prompt_tokens(await ask(rig, "own")) == prompt_tokens(expected)
        assert prompt_tokens(await ask(rig, "plain")) != prompt_tokens(expected)
        assert rig.store.templates_asked == 1


async def test_a_broken_template_is_said_and_text_still_served(model_folder):
    async with running_rig(model_folder) as rig:
        rig.store.templates[DIGEST] = "{% for"
        await rig.store.point("own", DIGEST)
        for _ in range(2):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ask(rig, "own")
            error = from_rpc(caught.value)
            assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "CHAT_TEMPLATE_BROKEN")
        assert rig.store.templates_asked == 1
        assert await ask(rig, "own", text="hi")


async def test_a_name_that_moves_takes_the_new_versions_template(model_folder):
    async with running_rig(model_folder) as rig:
        rig.store.templates |= {DIGEST: TEMPLATE, OTHER: f"{TEMPLATE} and much more text"}
        await rig.store.point("own", DIGEST)
        first = prompt_tokens(await ask(rig, "own"))
        await rig.store.point("own", OTHER)
        assert prompt_tokens(await ask(rig, "own")) > first
