"""Channels and the transport options that clients and servers share."""

import grpc

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""Largest message that a service of ours accepts: a million prompt ids fit, an absurd prompt does not."""

_KEEPALIVE_MS = 30_000

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    # Answers are as large as they are: a catalog's snapshot has every name.
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # A peer that restarts is met again within a second rather than after a backoff of up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Subchannels are shared per process by default; a stream that was cut must not share fate with others.
    ("grpc.use_local_subchannel_pool", 1),
)

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # A peer whose host has gone is noticed, and what it asked for is given up.
    ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
)


def open_channel(target: str, credentials: grpc.ChannelCredentials | None = None) -> grpc.aio.Channel:
    """A channel to `host:port` or `unix:/path`, in plaintext without credentials; connects on first use."""
    if credentials is not None:
        return grpc.aio.secure_channel(target, credentials, options=CHANNEL_OPTIONS)
    return grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)
