"""Renders templates which nobody vouches for: `python -m frontend.text.template_child SETTINGS`.

Reads requests from stdin and writes answers to stdout, each a length and a JSON object. A chat that takes too
long or too much memory ends it. It limits itself, so that nothing goes on when the frontend dies.
"""

import contextlib
import functools
import json
import os
import resource
import signal
import struct
import sys
from typing import Any, BinaryIO, NoReturn

from frontend.text.chat_template import ChatTemplate
from rpc.errors import LorikeetError, failed_precondition

LENGTH = "<I"
_CPU_SECONDS = 1.0
_MEMORY_BYTES = 512 << 20
_KEPT = 64


def main() -> None:
    settings = json.loads(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    with contextlib.suppress(ValueError, OSError):  # not every system can
        resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY_BYTES, _MEMORY_BYTES))

    @functools.lru_cache(_KEPT)
    def compiled(source: str) -> ChatTemplate:
        return ChatTemplate(source, **settings)

    read, write = sys.stdin.buffer, sys.stdout.buffer
    while (request := _receive(read)) is not None:
        # Of processor time, which a busy machine does not use up. Its signal ends the process.
        signal.setitimer(signal.ITIMER_PROF, _CPU_SECONDS)
        answer = json.dumps(_answer(request, compiled)).encode()
        signal.setitimer(signal.ITIMER_PROF, 0)
        write.write(struct.pack(LENGTH, len(answer)) + answer)
        write.flush()


def _answer(request: dict[str, Any], compiled: Any) -> dict[str, Any]:
    try:
        template: ChatTemplate = compiled(request.pop("source"))
    except MemoryError:
        _give_up()
    except Exception as error:  # compilers fail in many ways on what nobody wrote by hand
        return {"broken": str(error) or type(error).__name__}
    if not request:
        return {}
    try:
        return {"text": template.render(request.pop("messages"), **request)}
    except LorikeetError as error:
        if isinstance(error.__cause__, MemoryError):
            _give_up()
        return {"code": error.code.name, "reason": error.reason, "message": error.message}


def _give_up() -> NoReturn:
    # What others left here may have taken the memory: the next try has it all.
    os._exit(1)


def costly() -> LorikeetError:
    """The error for a template that takes more than it may."""
    return failed_precondition(
        "CHAT_TEMPLATE_COSTLY",
        "the adapter's own template took too much time or memory: simplify it and load the adapter again, or "
        "send the prompt as text",
    )


def _receive(read: BinaryIO) -> dict[str, Any] | None:
    head = read.read(struct.calcsize(LENGTH))
    if len(head) < struct.calcsize(LENGTH):
        return None
    (size,) = struct.unpack(LENGTH, head)
    return json.loads(read.read(size))


if __name__ == "__main__":
    main()
