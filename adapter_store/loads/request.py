"""What every load begins with, wherever it comes from."""

from dataclasses import dataclass

import grpc

from adapter_store.catalog.versions import Version
from adapter_store.sources.reader import SourceReader
from rpc.errors import data_loss

MAY_PASS = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.FAILED_PRECONDITION,
)
"""Codes of a load that may work later as it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadRequest:
    """One load: what shall be served under which name, and on which conditions.

    Args:
        reader: of where the adapter lies.
        expected_digest: what the name must point to when it moves; "none": nothing; empty: no condition.
        pinned: keep it in memory; None leaves that as it is.
        tenant: whose quota it counts against.
        for_everyone: it is of no tenant, and must not come under the name of one.
        content_digest: what the content must be; empty: no condition.
        is_shared: it may join one that waits already, of the same source on the same conditions.
    """

    name: str
    reader: SourceReader
    expected_digest: str = ""
    pinned: bool | None = None
    tenant: str = ""
    for_everyone: bool = False
    content_digest: str = ""
    is_shared: bool = True

    @property
    def source(self) -> str:
        return self.reader.source

    @property
    def flight(self) -> tuple[object, ...]:
        """Requests that are equal in this are one."""
        whose = (self.tenant, self.for_everyone)
        conditions = (self.expected_digest, self.pinned, self.content_digest)
        return ("load", self.name, self.source if self.is_shared else id(self.reader), *whose, *conditions)

    def check_content(self, version: Version) -> None:
        """Raises LorikeetError, DATA_LOSS, where what arrived is not what was announced."""
        if self.content_digest not in ("", version.digest):
            raise data_loss(
                "DIGEST_MISMATCH",
                f"what arrived for {self.name} has the digest {version.digest}, not the announced "
                f"{self.content_digest}: it was damaged on its way, or is something else; send it again",
            )
