"""Text to token ids and back for clients: what Generate would make of them, without generating."""

from frontend.fields import check_token_ids, out_of_range
from frontend.model_folder import ModelFolder
from frontend.requests.prompts import PromptReader
from frontend.text.workers import TextWorkers
from lorikeet.v1 import generation_pb2

MAX_DETOKENIZE_IDS = 1 << 20
# What is done without a thread's detour.
_INLINE_TOKENS = 1024


class Tokenization:
    """Answers Tokenize and Detokenize, on a thread of its own if they are long: no context bounds these
    texts, and megabytes may take a minute, for which no prompt is to wait.

    Args:
        model: the base model's folder, read.
        max_prompt_bytes: largest text in bytes of UTF-8.
    """

    def __init__(self, model: ModelFolder, *, max_prompt_bytes: int) -> None:
        self._model = model
        self._codec = model.codec
        self._worker = TextWorkers(threads=1, max_waiting=16, counted_as="tokenize_waiting")
        self._prompts = PromptReader(
            codec=model.codec, workers=self._worker, max_prompt_bytes=max_prompt_bytes
        )

    def statistics(self) -> dict[str, int]:
        return self._worker.statistics()

    def close(self) -> None:
        """Drops what waits."""
        self._worker.close()

    async def tokenize(self, request: generation_pb2.TokenizeRequest) -> generation_pb2.TokenizeResponse:
        """Token ids as Generate would use them. Raises INVALID_ARGUMENT, RESOURCE_EXHAUSTED."""
        ids = await self._prompts.read(request, self._model.template)

        def encode() -> generation_pb2.TokenizeResponse:
            token_bytes = self._codec.token_bytes
            return generation_pb2.TokenizeResponse(
                token_ids=ids, tokens=[token_bytes(token_id) for token_id in ids]
            )

        return encode() if len(ids) <= _INLINE_TOKENS else await self._worker.run(encode)

    async def detokenize(
        self, request: generation_pb2.DetokenizeRequest
    ) -> generation_pb2.DetokenizeResponse:
        """The text of token ids. Raises INVALID_ARGUMENT, RESOURCE_EXHAUSTED."""
        ids = request.token_ids
        if len(ids) > MAX_DETOKENIZE_IDS:
            raise out_of_range("token_ids", f"{len(ids)} long", f"at most {MAX_DETOKENIZE_IDS}")
        check_token_ids("token_ids", ids, self._model.vocab_size)

        def decode() -> generation_pb2.DetokenizeResponse:
            text = self._codec.decode(ids, skip_special_tokens=not request.include_special_tokens)
            return generation_pb2.DetokenizeResponse(text=text)

        return decode() if len(ids) <= _INLINE_TOKENS else await self._worker.run(decode)
