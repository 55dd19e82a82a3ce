from collections.abc import Iterator

import pytest

from cli.commands.chat import Conversation
from tests.support.cli_fake_server import FakeServer, fake_server
from tests.support.cli_runner import lorikeet


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with fake_server() as state:
        yield state


def test_turns_carry_the_whole_conversation(server: FakeServer) -> None:
    done = lorikeet(
        "chat", "--system", "be brief", "--target", server.target, stdin="hello there\n\nand now\n"
    )
    assert done.out == "base: there hello\nbase: now and\n"
    messages = [(message.role, message.content) for message in server.requests[1].chat.messages]
    assert messages == [
        ("system", "be brief"),
        ("user", "hello there"),
        ("assistant", "base: there hello"),
        ("user", "and now"),
    ]


def test_switches_adapters_between_turns(server: FakeServer) -> None:
    lorikeet("adapters", "load", "alice", "/a", "--target", server.target)
    lines = "/adapters\n/adapter alice\nhi\n/adapter\nhi\n/quit\nnever\n"
    done = lorikeet("chat", "--target", server.target, stdin=lines)
    assert done.out == "alice\nalice: hi\nbase: hi\n"


def test_an_unknown_adapter_is_refused_before_it_is_used(server: FakeServer) -> None:
    done = lorikeet("chat", "--target", server.target, stdin="/adapter nobody\nhi\n")
    assert done.code == 1
    assert "ADAPTER_NOT_FOUND" in done.err
    assert server.requests == []


def test_clear_forgets(server: FakeServer) -> None:
    lorikeet("chat", "--target", server.target, stdin="one\n/clear\ntwo\n")
    assert [message.content for message in server.requests[1].chat.messages] == ["two"]


def test_needs_a_chat_template(server: FakeServer) -> None:
    server.has_chat_template = False
    done = lorikeet("chat", "--target", server.target, stdin="hi\n")
    assert done.code == 1
    assert "use `lorikeet generate`" in done.err


def test_unknown_commands_are_named(server: FakeServer) -> None:
    done = lorikeet("chat", "--target", server.target, stdin="/fly\n")
    assert done.code == 0
    assert "there is no /fly" in done.err


def test_conversation_starts_empty() -> None:
    assert Conversation().messages("hi") == [("user", "hi")]
