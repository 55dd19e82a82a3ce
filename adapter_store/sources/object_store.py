"""Adapters in buckets: S3, Google Cloud Storage, Azure, and whatever speaks their protocols.

Credentials, regions and endpoints come from the environment, as obstore reads it. What obstore raises is
never repeated: it may quote signed URLs.
"""

import os
from collections.abc import Iterator, Sequence
from datetime import timedelta

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, PreconditionError, UnauthenticatedError
from obstore.store import from_url

from adapter_store.sources.transfers import BrokenOffError, RemoteFile, changed, find_each
from adapter_store.sources.urls import SourceUrl
from rpc.errors import LorikeetError, not_found, permission_denied

_RANGE_BYTES = 32 << 20
_CHUNK_BYTES = 1 << 20
# Of a whole range: one that comes this slowly is asked for anew from where it is.
_RANGE_SECONDS = 120
_ENVIRONMENT = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}


class ObjectStore:
    """A `Remote` over obstore."""

    def __init__(self, url: SourceUrl) -> None:
        self._url = url
        try:
            self._store = from_url(
                url.public + "/",
                # Retries are ours: one place decides how many there are.
                retry_config={"max_retries": 0},
                client_options={
                    # Of obstore's own variables this one would be lost beside other options.
                    "allow_http": os.environ.get("AWS_ALLOW_HTTP", "").lower() == "true",
                    "connect_timeout": timedelta(seconds=10),
                    "timeout": timedelta(seconds=_RANGE_SECONDS),
                    "read_timeout": timedelta(seconds=30),
                },
            )
        except (BaseError, ValueError):
            raise permission_denied(
                "SOURCE_NOT_CONFIGURED",
                f"{url.public}: the store's environment does not say how to reach {url.scheme}://: set "
                f"{_ENVIRONMENT[url.scheme]} where the store runs",
            ) from None

    def find(self, names: Sequence[str]) -> dict[str, RemoteFile]:
        """See `Remote.find`."""
        return find_each(names, self._find_one)

    def read(self, file: RemoteFile, start: int) -> Iterator[bytes]:
        """See `Remote.read`."""
        for begin in range(start, file.size, _RANGE_BYTES):
            end = min(begin + _RANGE_BYTES, file.size)
            try:
                result = obstore.get(
                    self._store,
                    file.name,
                    options={"range": (begin, end), "if_match": file.version or None},
                )
                if result.meta["size"] != file.size or (result.meta["e_tag"] or "") != file.version:
                    raise changed(file.name)
                yield from result.stream(min_chunk_size=_CHUNK_BYTES)
            except (BaseError, OSError) as error:
                raise self._explained(file.name, error) from None

    def _find_one(self, name: str) -> RemoteFile | None:
        try:
            meta = obstore.head(self._store, name)
        except FileNotFoundError:
            return None
        except (BaseError, OSError) as error:
            raise self._explained(name, error) from None
        return RemoteFile(name=name, size=meta["size"], version=meta["e_tag"] or "")

    def _explained(self, name: str, error: Exception) -> LorikeetError | BrokenOffError:
        match error:
            case FileNotFoundError():
                return not_found("NO_FILE", f"{self._url.public}: {name} is missing")
            case PermissionDeniedError() | UnauthenticatedError():
                return permission_denied(
                    "SOURCE_DENIED",
                    f"{self._url.public}: the store may not read {name}: give it credentials that may, in "
                    f"{_ENVIRONMENT[self._url.scheme]} of its environment",
                )
            case PreconditionError():
                return changed(name)
        return BrokenOffError(
            f"{name} could not be read ({type(error).__name__}; the store's environment sets the endpoint: "
            f"{_ENVIRONMENT[self._url.scheme]})"
        )
