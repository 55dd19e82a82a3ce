"""What only happens in a terminal: prompts, interruption, tables, progress and summaries."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli_fake_server import FakeServer, fake_server
from tests.support.cli_runner import lorikeet
from tests.support.cli_terminal import CTRL_C, CTRL_D, terminal
from tests.support.waiting import WAIT_SECONDS


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with fake_server() as state:
        yield state


def test_chat_prompts_switches_and_remembers(server: FakeServer, tmp_path: Path) -> None:
    assert lorikeet("adapters", "load", "alice", "/a", "--target", server.target).code == 0
    with terminal("chat", "--target", server.target, home=tmp_path) as screen:
        screen.see("fake-1b; /help lists the commands")
        screen.see("base> ")
        screen.type("hello there\n")
        screen.see("base: there hello\n")
        screen.type("/adapter nobody\n")
        screen.see("NOT_FOUND (ADAPTER_NOT_FOUND)")
        screen.see("base> ")
        screen.type("/adapter alice\n")
        screen.see("alice> ")
        screen.type(CTRL_D)
        assert screen.end() == 0
    history = (tmp_path / "lorikeet" / "chat_history").read_text()
    assert "hello there" in history
    assert (tmp_path / "lorikeet" / "chat_history").stat().st_mode & 0o077 == 0


def test_ctrl_c_stops_an_answer_and_not_the_chat(server: FakeServer, tmp_path: Path) -> None:
    server.hold = True
    with terminal("chat", "--target", server.target, home=tmp_path) as screen:
        screen.see("base> ")
        screen.type("hello there\n")
        screen.see("base: ")
        screen.type(CTRL_C)
        assert server.cancelled.wait(timeout=WAIT_SECONDS)
        screen.see("base> ")
        server.hold = False
        screen.type("and now\n")
        screen.see("base: now and\n")
        screen.type("/quit\n")
        assert screen.end() == 0
    said = [(message.role, message.content) for message in server.requests[1].chat.messages]
    assert said == [("user", "hello there"), ("assistant", "base: "), ("user", "and now")]


def test_ctrl_c_ends_generate_with_130(server: FakeServer, tmp_path: Path) -> None:
    server.hold = True
    with terminal("generate", "x y", "--target", server.target, home=tmp_path) as screen:
        screen.see("base: ")
        screen.type(CTRL_C)
        assert screen.end() == 130
    assert server.cancelled.wait(timeout=WAIT_SECONDS)


def test_generate_ends_with_a_summary(server: FakeServer, tmp_path: Path) -> None:
    with terminal("generate", "x y", "--target", server.target, home=tmp_path) as screen:
        screen.see("base: y x\n")
        screen.see("base: 2 prompt tokens (0 cached), 3 generated;")
        assert screen.end() == 0


def test_escape_sequences_of_a_model_are_shown_and_not_obeyed(server: FakeServer, tmp_path: Path) -> None:
    with terminal("generate", "a\x1b[31mb", "--target", server.target, home=tmp_path) as screen:
        screen.see("base: a\ufffd[31mb\n")
        assert screen.end() == 0


@pytest.mark.parametrize("columns", [100, 12])
def test_tables_have_headings_and_whole_words(server: FakeServer, tmp_path: Path, columns: int) -> None:
    assert lorikeet("adapters", "load", "alice", "/a", "--target", server.target).code == 0
    with terminal("adapters", "list", "--target", server.target, home=tmp_path, columns=columns) as screen:
        assert screen.see("NAME").strip() == ""
        screen.see("alice")
        screen.see("abababababab\n")
        assert screen.end() == 0


def test_a_missing_prompt_is_wrong_usage(server: FakeServer, tmp_path: Path) -> None:
    with terminal("generate", "--target", server.target, home=tmp_path) as screen:
        screen.see("no prompt: give one")
        assert screen.end() == 2
