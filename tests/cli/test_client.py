import grpc
import pytest

from cli.client import Connection, explain
from rpc.errors import LorikeetError

CONNECTION = Connection(target="here:1", timeout=5)


@pytest.mark.parametrize(
    ("transport", "said"),
    [
        ("failed to connect to all addresses; last error: UNKNOWN: refused", "nothing answers at here:1"),
        ("failed to connect to all addresses; last error: UNAVAILABLE: Socket closed", "give --tls-ca"),
        ("failed to connect to all addresses; last error: INTERNAL: Failed parsing HTTP/2", "speaks no gRPC"),
        (
            "failed to connect to all addresses; Tls handshake failed (TSI_PROTOCOL_FAILURE)",
            "leave out --tls-ca",
        ),
        ("Stream removed (Socket closed)", "here:1 went away before the answer was complete: ask again"),
    ],
)
def test_a_lost_connection_is_told_from_none(transport: str, said: str) -> None:
    error = explain(LorikeetError(grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE", transport), CONNECTION)
    assert said in error.message
    assert transport in error.message
