"""Errors as every service of Lorikeet raises, sends and reads them.

Inside a process an error is a `LorikeetError`. On the wire it is a canonical gRPC status with a
`google.rpc.ErrorInfo` (domain "lorikeet", a stable reason) and, where waiting helps,
a `google.rpc.RetryInfo` (AIP-193).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

DOMAIN = "lorikeet"

# Clients drop a response whose headers exceed 8 KiB, and learn nothing of the error. The message travels
# twice: percent-encoded, up to three bytes a byte, and in the details.
_MAX_MESSAGE_BYTES = 1500
_MAX_METADATA_BYTES = 200

_CODE_BY_NUMBER: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


@dataclass(eq=False)
class LorikeetError(Exception):
    """A failure that a caller is told about.

    Args:
        code: canonical gRPC code.
        reason: stable UPPER_SNAKE_CASE identifier for programs.
        message: for people: what was wrong and what to do.
        metadata: further facts for programs.
        retry_after: seconds after which a retry may succeed; None when a retry is no help.
    """

    code: grpc.StatusCode
    reason: str
    message: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    retry_after: float | None = None

    def __str__(self) -> str:
        return f"{self.code.name} ({self.reason}): {self.message}"


def invalid_argument(reason: str, message: str, **metadata: str) -> LorikeetError:
    """The request can never work as it is written."""
    return LorikeetError(grpc.StatusCode.INVALID_ARGUMENT, reason, message, metadata)


def not_found(reason: str, message: str, **metadata: str) -> LorikeetError:
    return LorikeetError(grpc.StatusCode.NOT_FOUND, reason, message, metadata)


def unauthenticated(reason: str, message: str, **metadata: str) -> LorikeetError:
    """Nobody knows who calls."""
    return LorikeetError(grpc.StatusCode.UNAUTHENTICATED, reason, message, metadata)


def permission_denied(reason: str, message: str, **metadata: str) -> LorikeetError:
    return LorikeetError(grpc.StatusCode.PERMISSION_DENIED, reason, message, metadata)


def failed_precondition(reason: str, message: str, **metadata: str) -> LorikeetError:
    """The system is not in the state that the request needs; a retry alone does not help."""
    return LorikeetError(grpc.StatusCode.FAILED_PRECONDITION, reason, message, metadata)


def unimplemented(reason: str, message: str, **metadata: str) -> LorikeetError:
    return LorikeetError(grpc.StatusCode.UNIMPLEMENTED, reason, message, metadata)


def aborted(reason: str, message: str, **metadata: str) -> LorikeetError:
    """The request lost a race; the caller may start it anew."""
    return LorikeetError(grpc.StatusCode.ABORTED, reason, message, metadata)


def data_loss(reason: str, message: str, **metadata: str) -> LorikeetError:
    return LorikeetError(grpc.StatusCode.DATA_LOSS, reason, message, metadata)


def internal(reason: str, message: str, **metadata: str) -> LorikeetError:
    return LorikeetError(grpc.StatusCode.INTERNAL, reason, message, metadata)


def resource_exhausted(
    reason: str, message: str, *, retry_after: float | None = None, **metadata: str
) -> LorikeetError:
    return LorikeetError(grpc.StatusCode.RESOURCE_EXHAUSTED, reason, message, metadata, retry_after)


def unavailable(
    reason: str, message: str, *, retry_after: float | None = 1.0, **metadata: str
) -> LorikeetError:
    return LorikeetError(grpc.StatusCode.UNAVAILABLE, reason, message, metadata, retry_after)


def from_code(code: int, reason: str, message: str, *, retry_after: float | None = None) -> LorikeetError:
    """An error from its number (a `google.rpc.Code`), as our own messages carry it."""
    return LorikeetError(_CODE_BY_NUMBER.get(code, grpc.StatusCode.UNKNOWN), reason, message, {}, retry_after)


def code_number(code: grpc.StatusCode) -> int:
    """The `google.rpc.Code` of a gRPC code."""
    return code.value[0]


def to_status(error: LorikeetError) -> status_pb2.Status:
    """Encodes an error with its ErrorInfo and, if it has a delay, its RetryInfo; cuts long texts."""
    message = _fit(error.message, _MAX_MESSAGE_BYTES)
    metadata = {key: _fit(value, _MAX_METADATA_BYTES) for key, value in error.metadata.items()}
    status = status_pb2.Status(code=code_number(error.code), message=message)
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)
    status.details.add().Pack(info)
    if error.retry_after is not None:
        delay = Duration()
        delay.FromNanoseconds(round(error.retry_after * 1e9))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def _fit(text: str, limit: int) -> str:
    # Messages quote what was sent, and JSON can spell half a surrogate pair.
    data = text[: limit + 1].encode("utf-8", "backslashreplace")
    return data.decode() if len(data) <= limit else data[: limit - 3].decode("utf-8", "ignore") + "..."


def from_status(status: status_pb2.Status) -> LorikeetError:
    """Decodes what `to_status` made; a status of other origin gets its code's name as its reason."""
    code = _CODE_BY_NUMBER.get(status.code, grpc.StatusCode.UNKNOWN)
    error = LorikeetError(code, code_pb2.Code.Name(code_number(code)), status.message)
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            error.reason, error.metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(retry):
            error.retry_after = retry.retry_delay.ToNanoseconds() / 1e9
    return error


def from_rpc(error: grpc.RpcError) -> LorikeetError:
    """Reads the error that a call of ours raised, sync or aio, with or without rich details."""
    assert isinstance(error, (grpc.Call, grpc.aio.AioRpcError)), (
        "an RpcError of a call carries code and details"
    )
    try:
        # grpc_status reads the same three accessors from aio errors as from sync calls.
        status = rpc_status.from_call(error)  # pyright: ignore[reportArgumentType]
    except ValueError:
        status = None
    if status is not None:
        return from_status(status)
    return LorikeetError(error.code(), error.code().name, error.details() or error.code().name)
