import asyncio
import threading
from pathlib import Path

import grpc
import pytest

from frontend.sampling import completion_seed
from frontend.text.tokenizer import TextCodec
from lorikeet.v1 import adapters_pb2, executor_pb2, generation_pb2, store_pb2
from rpc.errors import LorikeetError, from_rpc
from tests.support.frontend_fake_executor import fixed_tokens, logprob_of, token_by_position
from tests.support.frontend_harness import ids_of, running_rig, text_of
from tests.support.frontend_model_folder import EOS, byte_level_tokenizer, token_id
from tests.support.waiting import WAIT_SECONDS

TOKENIZER = byte_level_tokenizer()
DIGEST = "ab" * 32
PROMPT_IDS = TOKENIZER.encode("hello world").ids


def expected_ids(prompt_ids: list[int], seed: int, count: int) -> list[int]:
    submit = executor_pb2.Submit(prompt_ids=prompt_ids, sampling=executor_pb2.EngineSampling(seed=seed))
    return [token_by_position(submit, index) for index in range(count)]


async def test_a_text_prompt_streams_its_completion(model_folder: Path):
    async with running_rig(model_folder) as rig:
        responses = await rig.generate(
            text="hello world", sampling={"max_tokens": 12, "seed": 3}, request_id="mine"
        )
        expected = expected_ids(PROMPT_IDS, 3, 12)
        assert ids_of(responses) == expected
        assert text_of(responses) == TOKENIZER.decode(expected)
        assert [bool(response.finish_reason) for response in responses[:-1]] == [False] * (len(responses) - 1)
        last = responses[-1]
        assert last.finish_reason == generation_pb2.FINISH_REASON_LENGTH
        summary = last.summary
        assert (summary.request_id, summary.model, summary.adapter) == ("mine", "tiny", "")
        assert summary.usage == generation_pb2.Usage(
            prompt_tokens=len(PROMPT_IDS), cached_tokens=len(PROMPT_IDS) // 2, completion_tokens=12
        )
        timings = summary.timings
        assert 0 < timings.queued_us <= timings.first_token_us <= timings.total_us
        await rig.assert_idle()


async def test_a_chat_and_its_rendering_as_tokens_are_the_same_request(model_folder: Path):
    async with running_rig(model_folder) as rig:
        chat = generation_pb2.ChatPrompt(messages=[generation_pb2.ChatMessage(role="user", content="hi")])
        rendered = f"<|im_start|>user\nhi{EOS}\n<|im_start|>assistant\n"
        ids = TOKENIZER.encode(rendered, add_special_tokens=False).ids
        await rig.generate(chat=chat, sampling={"max_tokens": 2})
        await rig.generate(tokens={"ids": ids}, sampling={"max_tokens": 2})
        assert [list(submit.prompt_ids) for submit in rig.executor.submits] == [ids, ids]
        tokenized = await rig.generation.Tokenize(generation_pb2.TokenizeRequest(chat=chat))
        assert list(tokenized.token_ids) == ids
        assert b"".join(tokenized.tokens).decode() == rendered


async def test_a_long_prompt_goes_the_same_way_in_a_thread(model_folder: Path):
    async with running_rig(model_folder) as rig:
        text = "the quick brown fox " * 2000
        tokenized = await rig.generation.Tokenize(generation_pb2.TokenizeRequest(text=text))
        assert list(tokenized.token_ids) == TOKENIZER.encode(text).ids
        detokenized = await rig.generation.Detokenize(
            generation_pb2.DetokenizeRequest(token_ids=tokenized.token_ids)
        )
        assert detokenized.text == text


async def test_no_prompt_waits_for_texts_that_are_only_tokenised(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    release, begun, encode = threading.Event(), threading.Event(), TextCodec.encode

    def encode_slowly(self: TextCodec, text: str, *, add_special_tokens: bool) -> list[int]:
        if text.startswith("slow"):
            begun.set()
            assert release.wait(WAIT_SECONDS)
        return encode(self, text, add_special_tokens=add_special_tokens)

    monkeypatch.setattr(TextCodec, "encode", encode_slowly)
    async with running_rig(model_folder, context_length=1 << 20) as rig:
        request = generation_pb2.TokenizeRequest(text="slow " * 1000)
        slow = [asyncio.ensure_future(rig.generation.Tokenize(request)) for _ in range(3)]
        try:
            assert await asyncio.to_thread(begun.wait, WAIT_SECONDS)
            assert ids_of(await rig.generate(text="the quick " * 1000, sampling={"max_tokens": 2}))
            assert not any(task.done() for task in slow)
        finally:
            release.set()
        await asyncio.gather(*slow)


async def test_end_of_sequence_ends_and_leaves_no_text(model_folder: Path):
    a, eos = token_id(TOKENIZER, "a"), token_id(TOKENIZER, EOS)
    async with running_rig(model_folder, script=fixed_tokens([a, a, eos])) as rig:
        responses = await rig.generate(text="x", sampling={"max_tokens": 50})
        assert text_of(responses) == "aa"
        assert ids_of(responses) == [a, a, eos]
        assert (responses[-1].finish_reason, responses[-1].stop_match) == (
            generation_pb2.FINISH_REASON_STOP,
            EOS,
        )
        assert responses[-1].summary.usage.completion_tokens == 3
        responses = await rig.generate(
            text="x", sampling={"max_tokens": 4, "ignore_eos": True}, include_special_tokens=True
        )
        assert text_of(responses) == f"aa{EOS}a"


async def test_a_stop_string_across_tokens_ends_the_work(model_folder: Path):
    tokens = [token_id(TOKENIZER, character) for character in "abcdef"]
    async with running_rig(model_folder, script=fixed_tokens(tokens)) as rig:
        responses = await rig.generate(text="x", sampling={"max_tokens": 400}, stop=["zz", "de"])
        assert text_of(responses) == "abc"
        assert ids_of(responses) == tokens[:5]
        assert responses[-1].stop_match == "de"
        assert responses[-1].summary.usage.completion_tokens == 5
        await rig.assert_idle()
        assert rig.executor.finishes == [1]
        assert not rig.executor.aborts


async def test_several_completions_have_seeds_and_ends_of_their_own(model_folder: Path):
    async with running_rig(model_folder) as rig:
        responses = await rig.generate(text="hello world", n=3, sampling={"max_tokens": 6, "seed": 11})
        for index in range(3):
            assert ids_of(responses, index) == expected_ids(PROMPT_IDS, completion_seed(11, index), 6)
            assert sum(bool(r.finish_reason) for r in responses if r.index == index) == 1
        assert [response.HasField("summary") for response in responses].count(True) == 1
        assert responses[-1].summary.usage.completion_tokens == 18
        assert responses[-1].summary.usage.prompt_tokens == len(PROMPT_IDS)


async def test_logprobs_stand_beside_their_tokens(model_folder: Path):
    async with running_rig(model_folder) as rig:
        sampling = {"max_tokens": 3, "seed": 1}
        plain = await rig.generate(text="hello world", sampling=sampling)
        asked = await rig.generate(text="hello world", sampling=sampling, logprobs=2, prompt_logprobs=1)
        assert ids_of(plain) == ids_of(asked)
        assert not any(response.logprobs or response.prompt_logprobs for response in plain)
        for response in asked:
            assert [entry.token_id for entry in response.logprobs] == list(response.token_ids)
            for entry in response.logprobs:
                assert entry.logprob == pytest.approx(logprob_of(entry.token_id))
                assert [top.token_id for top in entry.top] == [entry.token_id, (entry.token_id + 1) % 300]
        prompt = asked[0].prompt_logprobs
        assert [entry.token_id for entry in prompt] == PROMPT_IDS
        assert (prompt[0].logprob, len(prompt[0].top)) == (0.0, 0)
        assert [entry.logprob for entry in prompt[1:]] == pytest.approx(
            [logprob_of(i) for i in PROMPT_IDS[1:]]
        )
        assert [len(entry.top) for entry in prompt[1:]] == [1] * (len(PROMPT_IDS) - 1)
        assert not any(response.prompt_logprobs for response in asked[1:])


async def test_the_first_message_and_the_summary_name_the_digest(model_folder: Path):
    async with running_rig(model_folder, adapters={"sql": DIGEST}) as rig:
        for adapter in ("sql", f"b3:{DIGEST}"):
            responses = await rig.generate(text="x", adapter=adapter, sampling={"max_tokens": 3})
            assert responses[0].adapter_digest == DIGEST
            assert not any(response.adapter_digest for response in responses[1:])
            assert (responses[-1].summary.adapter, responses[-1].summary.adapter_digest) == (adapter, DIGEST)
        assert [submit.adapter_digest for submit in rig.executor.submits] == [DIGEST, DIGEST]


async def test_a_name_that_moved_while_the_request_was_on_its_way_is_followed(model_folder: Path):
    new = "cd" * 32
    async with running_rig(model_folder, adapters={"sql": DIGEST}) as rig:

        def refuse(submit: executor_pb2.Submit) -> executor_pb2.Failed | None:
            if submit.adapter_digest != DIGEST:
                return None
            # The catalog that the frontend acts by moves before the refusal arrives.
            rig.frontend.catalog.apply(moved)
            return executor_pb2.Failed(
                request=submit.request, code=5, reason="ADAPTER_NOT_FOUND", message="gone"
            )

        moved = store_pb2.FollowResponse(
            revision=9, pointers=[store_pb2.AdapterPointer(name="sql", digest=new)]
        )
        rig.executor.refuse = refuse
        responses = await rig.generate(text="x", adapter="sql", n=2, sampling={"max_tokens": 3})
        assert responses[0].adapter_digest == new
        assert responses[-1].summary.adapter_digest == new
        assert [submit.adapter_digest for submit in rig.executor.submits] == [DIGEST, DIGEST, new, new]
        usage = await rig.adapters.GetAdapterStatistics(adapters_pb2.GetAdapterStatisticsRequest())
        assert [(each.digest, each.requests) for each in usage.adapters] == [(new, 1)]
        await rig.assert_idle()


async def test_what_the_executor_refuses_reaches_the_client_as_it_is(model_folder: Path):
    async with running_rig(model_folder, adapters={"sql": DIGEST}) as rig:
        rig.executor.refuse = lambda submit: executor_pb2.Failed(
            request=submit.request, code=5, reason="ADAPTER_NOT_FOUND", message="the store has lost it"
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rig.generate(text="x", adapter="sql", sampling={"max_tokens": 3})
        error = from_rpc(caught.value)
        assert isinstance(error, LorikeetError)
        assert (error.code, error.reason, error.message) == (
            grpc.StatusCode.NOT_FOUND,
            "ADAPTER_NOT_FOUND",
            "the store has lost it",
        )
        assert len(rig.executor.submits) == 1, "the name has not moved: nothing to try again"
        await rig.assert_idle()


async def test_the_model_describes_itself(model_folder: Path):
    async with running_rig(model_folder) as rig:
        model = await rig.generation.GetModel(generation_pb2.GetModelRequest())
        assert (model.name, model.model_type, model.context_length) == ("tiny", "qwen3", 512)
        assert (model.adapter_slots, model.max_lora_rank, list(model.eos_token_ids)) == (8, 64, [2])
        assert model.has_chat_template
        assert model.default_sampling.max_tokens == 256
        assert model.version
