from pathlib import Path

import pytest
from grpc._cython import cygrpc

from rpc.channel import CHANNEL_OPTIONS, SERVER_OPTIONS

LIBRARY = Path(cygrpc.__file__).read_bytes()


@pytest.mark.parametrize("name", sorted({name for name, _ in (*CHANNEL_OPTIONS, *SERVER_OPTIONS)}))
def test_grpc_knows_every_option(name: str) -> None:
    # It ignores unknown names without a word; servers then cut idle streams for "too many pings".
    assert name.encode() in LIBRARY
