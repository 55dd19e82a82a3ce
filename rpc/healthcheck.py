"""Asks a service whether it serves: `python -m rpc.healthcheck TARGET`, exit status 0 when it does.

Made for containers: needs nothing but grpcio, and answers within two seconds.
"""

import sys
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_TIMEOUT_SECONDS = 2.0


def is_serving(target: str, timeout: float = _TIMEOUT_SECONDS) -> bool:
    """True when the server at `host:port` or `unix:/path` answers SERVING within `timeout` seconds."""
    with grpc.insecure_channel(target) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout)
        except grpc.RpcError:
            return False
    return answer.status == health_pb2.HealthCheckResponse.SERVING


if __name__ == "__main__":
    sys.exit(0 if is_serving(sys.argv[1]) else 1)
