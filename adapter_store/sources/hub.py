"""Adapters on the Hugging Face hub, or on a server that speaks its protocol (HF_ENDPOINT).

The revision is looked up once; everything is read from that commit, and hashed against what the hub's tree
says of it. The token comes from the environment, as huggingface_hub reads it, and goes to the hub alone.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import urlsplit

from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers

from adapter_store.sources.http_folder import read_range
from adapter_store.sources.http_requests import Hop, redirect_refused
from adapter_store.sources.transfers import BrokenOffError, Checksum, RemoteFile
from adapter_store.sources.urls import SourceUrl
from rpc.errors import LorikeetError, invalid_argument, not_found, permission_denied

_SECONDS = 30


class HubFolder:
    """A `Remote` over huggingface_hub: a repository, or a folder in one."""

    def __init__(self, url: SourceUrl) -> None:
        if not url.parts:
            raise invalid_argument("BAD_SOURCE", f"{url.public} names no repository: hf://owner/repository")
        self._url = url
        self._repository = f"{url.place}/{url.parts[0]}"
        self._folder = "".join(f"{part}/" for part in url.parts[1:])
        self._endpoint = os.environ.get("HF_ENDPOINT") or None
        self._api = HfApi(endpoint=self._endpoint)
        self._commit = ""

    def find(self, names: Sequence[str]) -> dict[str, RemoteFile]:
        """See `Remote.find`."""
        try:
            if not self._commit:
                info = self._api.model_info(
                    self._repository, revision=self._url.revision or None, timeout=_SECONDS
                )
                self._commit = info.sha or ""
            paths = [self._folder + name for name in names]
            entries = self._api.get_paths_info(self._repository, paths, revision=self._commit)
        except Exception as error:
            raise self._explained(error) from None
        files = [entry for entry in entries if isinstance(entry, RepoFile)]
        return {file.path.removeprefix(self._folder): self._described(file) for file in files}

    def read(self, file: RemoteFile, start: int) -> Iterator[bytes]:
        """See `Remote.read`."""
        address = hf_hub_url(
            self._repository, self._folder + file.name, revision=self._commit, endpoint=self._endpoint
        )
        return read_range(address, build_hf_headers(), _judge, file, start)

    def _described(self, file: RepoFile) -> RemoteFile:
        if file.lfs is not None:
            checksum = Checksum(algorithm="sha256", value=file.lfs.sha256)
        else:
            # As git names blobs.
            checksum = Checksum(algorithm="sha1", value=file.blob_id, prefix=b"blob %d\0" % file.size)
        return RemoteFile(name=file.path.removeprefix(self._folder), size=file.size, checksum=checksum)

    def _explained(self, error: Exception) -> LorikeetError | BrokenOffError:
        source = self._url.public
        token = "set HF_TOKEN, where the store runs, to a token that may read it"  # noqa: S105
        match error:
            case GatedRepoError():
                return permission_denied("SOURCE_DENIED", f"{source} is gated: accept its terms and {token}")
            case RevisionNotFoundError():
                return not_found("NO_SOURCE", f"{source}: the repository has no such revision")
            case RepositoryNotFoundError():
                return not_found(
                    "NO_SOURCE", f"{source}: there is no such repository; if it is private, {token}"
                )
            case HFValidationError():
                return invalid_argument("BAD_SOURCE", f"{source} cannot be a repository's name")
            case HfHubHTTPError() if error.response.status_code in (401, 403):
                return permission_denied("SOURCE_DENIED", f"{source}: the hub denies it: {token}")
            case HfHubHTTPError() if error.response.status_code in (400, 404, 410):
                return not_found("NO_SOURCE", f"{source}: the hub has no such thing")
        return BrokenOffError(f"the hub gives no good answer ({type(error).__name__})")


def _judge(first: str, following: str, headers: Mapping[str, str]) -> Hop:
    """The hub leads to its content servers; those get no token, and no address that is not public."""
    begun, target = urlsplit(first), urlsplit(following)
    if (begun.scheme, begun.netloc) == (target.scheme, target.netloc):
        return Hop(headers=headers, must_be_public=False)
    if target.scheme != "https" or target.username is not None:
        raise redirect_refused(first, following)
    kept = {name: value for name, value in headers.items() if name.lower() != "authorization"}
    return Hop(headers=kept, must_be_public=True)
