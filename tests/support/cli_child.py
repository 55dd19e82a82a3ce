"""A child process for tests of supervision: `python -m tests.support.cli_child ADDRESS MODE`.

Modes: "serve" serves health until SIGTERM; "stubborn" ignores SIGTERM.
"""

import os
import signal
import sys
import threading
from concurrent import futures

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc


def main() -> None:
    address, mode = sys.argv[1:]
    stop = threading.Event()
    signal.signal(signal.SIGTERM, signal.SIG_IGN if mode == "stubborn" else lambda *_: stop.set())
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
    servicer = health.HealthServicer()
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_insecure_port(address)
    server.start()
    print(f"{mode} {os.getpid()}", flush=True)
    stop.wait()
    server.stop(None)


if __name__ == "__main__":
    main()
