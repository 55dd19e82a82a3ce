"""A child process for tests of supervision: `python -m tests.support.cli_child ADDRESS MODE`.

Modes: "serve" serves health until SIGTERM; "stubborn" ignores SIGTERM.
"""

import os
import signal
import sys
from concurrent import futures

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc


def main() -> None:
    address, mode = sys.argv[1:]
    # A handler that sets an event is not called when the signal comes just before the wait for it begins. One
    # that is blocked stays pending; threads that are started later block it, too.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
    servicer = health.HealthServicer()
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_insecure_port(address)
    print(f"{mode} {os.getpid()}", flush=True)
    server.start()
    signal.sigwait({signal.SIGUSR1 if mode == "stubborn" else signal.SIGTERM})
    server.stop(None)


if __name__ == "__main__":
    main()
