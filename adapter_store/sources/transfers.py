"""Bytes over a network into a file: bounded, resumed where they broke off, checked.

A `Remote` knows a protocol. What is the same for all is here: a transfer goes on from the byte where it
broke, after ever longer pauses; it never takes more bytes than were announced, and compares a checksum at the
end.
"""

import hashlib
import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import grpc

from adapter_store.tiers.files import disk_errors
from rpc.errors import LorikeetError, aborted, data_loss, unavailable

# A retry that got this far does not count against the next.
_PROGRESS_BYTES = 1 << 20


class BrokenOffError(Exception):
    """A request failed in a way that may pass; the text is for people and holds nothing secret."""


@dataclass(frozen=True, kw_only=True)
class Checksum:
    """What a file must hash to: hex under an algorithm of hashlib, over `prefix` and the file."""

    algorithm: str
    value: str
    prefix: bytes = b""


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """One file as its server described it. `version` names its content (an ETag) where the server has one."""

    name: str
    size: int
    version: str = ""
    checksum: Checksum | None = None


class Remote(Protocol):
    """The files of one adapter at one place. Calls block; one thread at a time."""

    def find(self, names: Sequence[str]) -> dict[str, RemoteFile]:
        """Those of the names that there are. Raises BrokenOffError, LorikeetError."""
        ...

    def read(self, file: RemoteFile, start: int) -> Iterator[bytes]:
        """Bytes from `start` on; may end early. Raises BrokenOffError, LorikeetError (ABORTED if changed)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How often and how soon a failed request is made again.

    Args:
        tries: requests that fail one after another, without progress, before the load fails.
        first_seconds: pause before the second; doubles each time, with jitter.
    """

    tries: int = 6
    first_seconds: float = 0.2
    longest_seconds: float = 10.0

    def pause(self, failures: int) -> float:
        """Seconds before the next try."""
        longest = min(self.first_seconds * 2 ** (failures - 1), self.longest_seconds)
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 - spreads retries


class Attempts:
    """Counts what failed of one load, waits between tries, and stops when the store does."""

    def __init__(self, source: str, patience: Patience, stop: threading.Event) -> None:
        self._source = source
        self._patience = patience
        self._stop = stop
        self._failures = 0

    def check_stop(self) -> None:
        """Raises LorikeetError: UNAVAILABLE once the store shuts down."""
        if self._stop.is_set():
            raise unavailable("SHUTTING_DOWN", f"{self._source}: the store is shutting down: load it later")

    def succeeded(self) -> None:
        self._failures = 0

    def failed(self, error: BrokenOffError) -> None:
        """Waits, or raises LorikeetError: UNAVAILABLE when it was one failure too many."""
        self._failures += 1
        if self._failures >= self._patience.tries:
            raise unavailable(
                "SOURCE_UNAVAILABLE",
                f"{self._source}: {error}, {self._failures} times in a row: see to the endpoint, retry later",
                retry_after=5.0,
            ) from None
        self._stop.wait(self._patience.pause(self._failures))
        self.check_stop()


def find_files(remote: Remote, names: Sequence[str], attempts: Attempts) -> dict[str, RemoteFile]:
    """`Remote.find`, tried again where that may help. Raises LorikeetError."""
    while True:
        attempts.check_stop()
        try:
            found = remote.find(names)
        except BrokenOffError as error:
            attempts.failed(error)
        else:
            attempts.succeeded()
            return found


def find_each(names: Sequence[str], find_one: Callable[[str], RemoteFile | None]) -> dict[str, RemoteFile]:
    """`Remote.find` by one request for each name.

    Some servers deny what does not exist; so one denial counts only where nothing at all is found.
    """
    found: dict[str, RemoteFile] = {}
    denied: LorikeetError | None = None
    for name in names:
        try:
            file = find_one(name)
        except LorikeetError as error:
            if error.code is not grpc.StatusCode.PERMISSION_DENIED:
                raise
            denied = error
        else:
            if file is not None:
                found[name] = file
    if denied is not None and not found:
        raise denied
    return found


def fetch(
    remote: Remote, file: RemoteFile, target: Path, attempts: Attempts, advance: Callable[[int], None]
) -> None:
    """Brings one file into ours.

    Args:
        advance: called with the bytes of each step.

    Raises:
        LorikeetError: UNAVAILABLE after the last try, ABORTED when the file changed meanwhile, DATA_LOSS when
            its checksum is wrong, and what `Remote.read` raises.
    """
    checksum = file.checksum
    digest = hashlib.new(checksum.algorithm, checksum.prefix, usedforsecurity=False) if checksum else None
    done = settled = 0
    with disk_errors(), target.open("wb", buffering=0) as out:
        while done < file.size:
            attempts.check_stop()
            try:
                for chunk in remote.read(file, done):
                    attempts.check_stop()
                    if done + len(chunk) > file.size:
                        raise changed(file.name)
                    _write_all(out.fileno(), chunk)
                    if digest is not None:
                        digest.update(chunk)
                    done += len(chunk)
                    advance(len(chunk))
                if done < file.size:
                    raise BrokenOffError(f"{file.name} ended after {done} of {file.size} bytes")
            except BrokenOffError as error:
                if done - settled >= _PROGRESS_BYTES:
                    attempts.succeeded()
                    settled = done
                attempts.failed(error)
    attempts.succeeded()
    if checksum and digest and digest.hexdigest() != checksum.value:
        raise data_loss(
            "CHECKSUM_MISMATCH",
            f"{file.name} came with another {checksum.algorithm} than its server says: load it again",
        )


def changed(name: str) -> LorikeetError:
    """The error for a file that is no longer the one that the transfer began with."""
    return aborted("SOURCE_CHANGED", f"{name} changed while it was copied: load it again")


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
