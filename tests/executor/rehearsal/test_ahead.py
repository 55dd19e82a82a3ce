"""What becomes of a start whose rehearsal answers, fails, dies or cannot be begun; no GPU and no compiler."""

import logging
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from executor.model.config import ModelConfig
from executor.rehearsal.ahead import PLAYED, Ahead, Ask, Failed
from executor.rehearsal.plans import Limits
from executor.rehearsal.stage import Cast
from kernels.compiling import Compiled, Target
from kernels.launch import Variant
from tests.support.cli_serving import MODEL

CHILD = """
import sys
sys.stdin.buffer.read(1)
sys.stdout.buffer.write(bytes.fromhex(sys.argv[1]))
sys.stdout.buffer.flush()
if len(sys.argv) > 3:
    open(sys.argv[3]).read()
sys.exit(int(sys.argv[2]))
"""


def ask() -> Ask:
    limits = Limits(rows=2, tokens=16, context=64, slots=1, page_size=16)
    cast = Cast(
        model=ModelConfig.load(MODEL),
        dtype=torch.float32,
        limits=limits,
        units=1,
        max_rank=8,
        deterministic=False,
    )
    return Ask(cast=cast, target=Target("cuda", 90, 32), overlaps=True, processes=1)


def ahead(answers: list[Any], *more: str, code: int = 0) -> Ahead:
    """Of a process that gives these answers; bytes as they are."""
    data = b"".join(each if isinstance(each, bytes) else pickle.dumps(each) for each in answers)
    return Ahead(ask(), [sys.executable, "-c", CHILD, data.hex(), str(code), *more])


def not_compiled(name: str) -> Compiled:
    variant = Variant(module="m", kernel=name, dtypes=(), aligned=(), numbers=(), named=())
    return Compiled(variant, 1.0, "PermissionError: no room")


@pytest.mark.parametrize(
    ("answers", "code", "is_complete"),
    [
        ([PLAYED, PLAYED], 0, True),
        ([Failed("a step"), PLAYED], 0, False),
        ([not_compiled("k"), PLAYED], 0, False),
        ([], 3, False),
        ([b"no pickle"], 0, False),
        ([b"cno.such.module\nname\n."], 0, False),
    ],
    ids=["all", "a step failed", "a kernel failed", "died", "garbage", "of another version"],
)
def test_the_start_knows_whether_usual_steps_are_ready(
    answers: list[Any], code: int, is_complete: bool
) -> None:
    assert ahead(answers, code=code).wait() is is_complete


def test_a_start_goes_on_without_a_process(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert not Ahead(ask(), ["/no/such/program"]).wait()
    assert len(caplog.records) == 1
    assert "no such" in caplog.text.lower()


def test_what_fails_all_alike_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert not ahead([*map(not_compiled, "abcd"), PLAYED]).wait()
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert "no room" in told[0]
    assert told[1].startswith("4 kernels")


def test_who_is_asked_to_stop_does_not_wait(tmp_path: Path) -> None:
    def stop() -> None:
        raise InterruptedError

    fifo = tmp_path / "end"
    os.mkfifo(fifo)
    begun = ahead([], str(fifo))
    with pytest.raises(InterruptedError):
        begun.wait(stop)
    fifo.write_text("")
    begun.wait()
