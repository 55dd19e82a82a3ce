from typing import Any

from frontend.requests.completion import MAX_TOKENS_A_MESSAGE, Completion
from frontend.text.detokenizer import Detokenizer
from frontend.text.stop_strings import StopMatcher, StopStrings
from lorikeet.v1 import executor_pb2, generation_pb2
from tests.support.frontend_model_folder import EOS, byte_level_tokenizer, token_id

GO_ON = executor_pb2.ENGINE_FINISH_UNSPECIFIED
STOP = executor_pb2.ENGINE_FINISH_STOP
LENGTH = executor_pb2.ENGINE_FINISH_LENGTH
TOKENIZER = byte_level_tokenizer()
EOS_ID = token_id(TOKENIZER, EOS)


def ids(text: str) -> list[int]:
    """One token a byte."""
    return [token_id(TOKENIZER, "Ġ" if character == " " else character) for character in text]


def make(
    stop: tuple[str, ...] = (), stop_token_ids: tuple[int, ...] = (), include: bool = False
) -> Completion:
    return Completion(
        index=3,
        detokenizer=Detokenizer(TOKENIZER, skip_special_tokens=not include),
        matcher=StopMatcher(StopStrings(stop)) if stop else None,
        stop_token_ids=stop_token_ids,
        include_special_tokens=include,
        describe_token=lambda token: TOKENIZER.decode([token], skip_special_tokens=False),
    )


def take(completion: Completion) -> generation_pb2.GenerateResponse:
    response = completion.take()
    assert response is not None
    return response


def fields(response: generation_pb2.GenerateResponse) -> dict[str, Any]:
    return {
        "text": response.text,
        "token_ids": list(response.token_ids),
        "finish_reason": response.finish_reason,
        "stop_match": response.stop_match,
    }


def test_a_token_is_a_message():
    completion = make()
    assert completion.take() is None
    assert not completion.push(ids("a"), GO_ON)
    assert take(completion) == generation_pb2.GenerateResponse(index=3, text="a", token_ids=ids("a"))
    assert completion.take() is None


def test_what_is_not_taken_is_merged():
    completion = make()
    for token in ids("abc"):
        completion.push([token], GO_ON)
    completion.push(ids("d"), LENGTH)
    assert fields(take(completion)) == {
        "text": "abcd",
        "token_ids": ids("abcd"),
        "finish_reason": generation_pb2.FINISH_REASON_LENGTH,
        "stop_match": "",
    }
    assert completion.sent_all
    assert completion.take() is None


def test_a_long_backlog_is_split_into_messages_of_bounded_size():
    completion = make()
    tokens = ids("ab") * MAX_TOKENS_A_MESSAGE
    completion.push(tokens, LENGTH, [0.5] * len(tokens), {1: ([1], [0.25])})
    first, second = take(completion), take(completion)
    assert completion.take() is None
    assert [len(first.token_ids), len(second.token_ids)] == [MAX_TOKENS_A_MESSAGE] * 2
    assert first.text + second.text == "ab" * MAX_TOKENS_A_MESSAGE
    assert not first.finish_reason
    assert second.finish_reason
    assert len(first.logprobs) == len(second.logprobs) == MAX_TOKENS_A_MESSAGE
    assert [top.token_id for top in first.logprobs[1].top] == [1]


def test_an_end_of_sequence_token_counts_but_leaves_no_text():
    completion = make()
    assert not completion.push([*ids("a"), EOS_ID], STOP)
    assert fields(take(completion)) == {
        "text": "a",
        "token_ids": [*ids("a"), EOS_ID],
        "finish_reason": generation_pb2.FINISH_REASON_STOP,
        "stop_match": EOS,
    }
    assert completion.completion_tokens == 2


def test_an_end_of_sequence_token_stays_where_special_tokens_do():
    completion = make(include=True)
    completion.push([*ids("a"), EOS_ID], STOP)
    assert take(completion).text == f"a{EOS}"


def test_the_requests_own_stop_token_is_never_text():
    for include in (False, True):
        completion = make(stop_token_ids=tuple(ids("b")), include=include)
        completion.push(ids("ab"), STOP)
        response = take(completion)
        assert (response.text, response.stop_match) == ("a", "b")


def test_a_stop_string_cuts_text_tokens_and_usage():
    completion = make(stop=("cd",))
    assert not completion.push(ids("abc"), GO_ON)
    assert take(completion).text == "ab"
    assert completion.push(ids("def"), GO_ON)
    assert fields(take(completion)) == {
        "text": "",
        "token_ids": ids("d"),
        "finish_reason": generation_pb2.FINISH_REASON_STOP,
        "stop_match": "cd",
    }
    assert completion.completion_tokens == 4


def test_a_stop_string_in_the_last_token_wins_over_the_length():
    completion = make(stop=("b",))
    assert not completion.push(ids("ab"), LENGTH), "the engine has ended it already"
    assert take(completion).finish_reason == generation_pb2.FINISH_REASON_STOP


def test_held_text_and_an_incomplete_character_come_out_at_the_end():
    completion = make(stop=("cde",))
    completion.push(ids("abcd"), GO_ON)
    assert take(completion).text == "ab"
    completion.push([token_id(TOKENIZER, "ð")], LENGTH)
    assert take(completion).text == "cd\N{REPLACEMENT CHARACTER}"


def test_a_tail_after_all_tokens_were_taken_comes_with_the_finish_reason():
    completion = make(stop=("xyz",))
    completion.push(ids("ax"), GO_ON)
    assert take(completion).text == "a"
    completion.push([EOS_ID], STOP)
    assert take(completion).text == "x"
