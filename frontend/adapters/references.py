"""What a request says of its adapter."""

from dataclasses import dataclass

from frontend.fields import checked_id
from rpc.digests import is_digest
from rpc.errors import invalid_argument

_PIN = "b3:"


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterRef:
    """Which adapter a request asks for: by name, by digest, or (both empty) the base model."""

    name: str = ""
    digest: str = ""


def parse_adapter(adapter: str) -> AdapterRef:
    """Reads the `adapter` field. Raises INVALID_ARGUMENT for a malformed digest or an absurd name."""
    if adapter.startswith(_PIN):
        digest = adapter.removeprefix(_PIN)
        if not is_digest(digest):
            raise invalid_argument(
                "ADAPTER_DIGEST_MALFORMED", 'adapter begins with "b3:": 64 lower-case hex digits must follow'
            )
        return AdapterRef(digest=digest)
    return AdapterRef(name=checked_id("adapter", adapter))
