"""From a request's prompt, in whichever form, to token ids."""

from collections.abc import Sequence
from typing import Any

from frontend.requests.validation import check_chat, check_length, check_text
from frontend.text.chat_template import ChatTemplate, parse_variables
from frontend.text.template_process import AdapterTemplate
from frontend.text.tokenizer import SHORT_TEXT, TextCodec
from frontend.text.workers import TextWorkers
from lorikeet.v1 import generation_pb2
from rpc.errors import invalid_argument


class PromptReader:
    """Renders and tokenises prompts; long ones in a thread, so that running streams do not notice.

    Args:
        codec: the model's tokenizer.
        workers: threads for long texts.
        max_prompt_bytes: largest prompt in bytes of UTF-8.
    """

    def __init__(
        self,
        *,
        codec: TextCodec,
        workers: TextWorkers,
        max_prompt_bytes: int,
    ) -> None:
        self._codec = codec
        self._workers = workers
        self._max_prompt_bytes = max_prompt_bytes

    async def read(
        self,
        request: generation_pb2.GenerateRequest | generation_pb2.TokenizeRequest,
        template: ChatTemplate | AdapterTemplate | None,
        context_length: int | None = None,
    ) -> Sequence[int]:
        """The prompt's token ids; a chat is rendered with the template, if there is one.

        Args:
            context_length: in tokens; a text that is certain to exceed it need not be tokenised.

        Raises INVALID_ARGUMENT; RESOURCE_EXHAUSTED when too many wait.
        """
        kind = request.WhichOneof("prompt")
        if kind == "text":
            text = request.text
            if len(text) <= SHORT_TEXT:
                return self._encode(text, context_length, add_special_tokens=True)
            return await self._workers.run(
                lambda: self._encode(text, context_length, add_special_tokens=True)
            )
        if kind == "chat":
            chat = request.chat
            check_chat(chat)
            if isinstance(template, AdapterTemplate):
                text = await template.render(_messages(chat), **_options(chat))
                return await self._encode_rendered(text, context_length)
            if chat.ByteSize() <= SHORT_TEXT:
                return self._encode_chat(chat, template, context_length)
            return await self._workers.run(lambda: self._encode_chat(chat, template, context_length))
        if kind == "tokens" and isinstance(request, generation_pb2.GenerateRequest):
            # Not copied: there may be millions, which its length alone will refuse.
            return request.tokens.ids
        raise invalid_argument("PROMPT_MISSING", "the request has no prompt: set text or chat")

    def _encode_chat(
        self, chat: generation_pb2.ChatPrompt, template: ChatTemplate | None, context_length: int | None
    ) -> list[int]:
        if template is None:
            raise invalid_argument(
                "NO_CHAT_TEMPLATE", "this model has no chat template: send the prompt as text or as token ids"
            )
        return self._encode(template.render(_messages(chat), **_options(chat)), context_length)

    async def _encode_rendered(self, text: str, context_length: int | None) -> list[int]:
        if len(text) <= SHORT_TEXT:
            return self._encode(text, context_length)
        return await self._workers.run(lambda: self._encode(text, context_length))

    def _encode(
        self, text: str, context_length: int | None, *, add_special_tokens: bool = False
    ) -> list[int]:
        """A template writes the special tokens itself."""
        check_text(text, self._max_prompt_bytes)
        if context_length is not None and len(text) > SHORT_TEXT:
            check_length(self._codec.least_tokens(text), context_length, is_least=True)
        return self._codec.encode(text, add_special_tokens=add_special_tokens)


def _messages(chat: generation_pb2.ChatPrompt) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in chat.messages]


def _options(chat: generation_pb2.ChatPrompt) -> dict[str, Any]:
    """Raises INVALID_ARGUMENT."""
    return {
        "add_generation_prompt": chat.add_generation_prompt
        if chat.HasField("add_generation_prompt")
        else True,
        "variables": parse_variables(chat.template_variables_json),
    }
