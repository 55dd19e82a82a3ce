"""Chats of an adapter that brings its own template."""

import asyncio

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


async def test_a_version_that_goes_while_its_template_is_fetched_gives_way_to_the_new_one(model_folder):
    async with running_rig(model_folder) as rig:
        rig.store.templates |= {DIGEST: f"{TEMPLATE} and much more text", OTHER: TEMPLATE}
        rig.store.templates_open.clear()
        await rig.store.point("own", DIGEST)
        asked = asyncio.create_task(ask(rig, "own"))
        await rig.store.until(lambda: rig.store.templates_asked == 1)
        del rig.store.templates[DIGEST]
        await rig.store.point("own", OTHER)
        rig.store.templates_open.set()
        answer = await asked
        assert answer[-1].summary.adapter_digest == OTHER
        assert prompt_tokens(answer) == prompt_tokens(await ask(rig, "own", text="<hi>"))


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'x' * 10 ** 12 }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 9 ** (9 ** 9) }}",
    ],
)
async def test_a_template_that_never_ends_or_fills_the_memory_costs_only_its_own_chats(
    model_folder, template
):
    async with running_rig(model_folder) as rig:
        rig.store.templates |= {DIGEST: template, OTHER: TEMPLATE}
        await rig.store.point("hostile", DIGEST)
        await rig.store.point("own", OTHER)
        expected = prompt_tokens(await ask(rig, "own", text="<hi>"))
        hostile = asyncio.create_task(ask(rig, "hostile"))
        assert prompt_tokens(await ask(rig, "own")) == expected
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await hostile
        error = from_rpc(caught.value)
        assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "CHAT_TEMPLATE_COSTLY")
        assert prompt_tokens(await ask(rig, "own")) == expected


async def test_a_chat_whose_template_process_was_killed_is_rendered_by_another(model_folder):
    async with running_rig(model_folder) as rig:
        rig.store.templates[DIGEST] = TEMPLATE
        await rig.store.point("own", DIGEST)
        expected = prompt_tokens(await ask(rig, "own"))
        (child,) = rig.frontend._templates._all
        child.process.kill()
        child.process.wait()
        assert prompt_tokens(await ask(rig, "own")) == expected


async def test_a_refusal_of_an_adapters_template_reaches_the_client(model_folder):
    async with running_rig(model_folder) as rig:
        rig.store.templates[DIGEST] = "{{ raise_exception('roles must alternate') }}"
        await rig.store.point("own", DIGEST)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(rig, "own")
        error = from_rpc(caught.value)
        assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "CHAT_TEMPLATE_REFUSED")
        assert "roles must alternate" in error.message
