"""Settings of one frontend process, validated once."""

import math
from dataclasses import dataclass
from pathlib import Path

from rpc.addresses import check_address, check_tcp_address
from rpc.channel import MAX_MESSAGE_BYTES
from rpc.tls import ServerTls, server_tls


@dataclass(frozen=True, kw_only=True)
class FrontendConfig:
    """What one frontend process listens on, talks to and bounds.

    Raises ValueError, saying what to change, for values that cannot work.

    Args:
        model_dir: folder with config.json, tokenizer.json and the chat template; weights are not read.
        listen: `host:port` (port 0 takes a free one) or `unix:/path`.
        executor: the executor's address.
        store: the adapter store's address; empty serves the base model only.
        admin_listen: another address for AdapterService, which then is there alone; the same as listen offers
            it to whoever reaches that. Empty offers it on listen, without auth_file to this machine only.
        local_listen: `unix:/path` of a socket that asks for neither token nor TLS; its folder says who may
            open it.
        auth_file: YAML or JSON list of {name, role, token_sha256, tenant}; each call then needs a token.
        tls_cert: certificate chain in PEM; listen and admin_listen then speak TLS only.
        tls_key: the certificate's private key in PEM.
        tls_client_ca: authorities in PEM; clients must then show a certificate that one of them signed.
        metrics_listen: `host:port` for metrics in Prometheus' format over HTTP; empty serves none.
        max_requests: completions generated at once; one more is refused with RESOURCE_EXHAUSTED.
        max_message_bytes: largest message accepted from a client.
        max_prompt_bytes: largest prompt in bytes of UTF-8, a rendered chat included.
        patience_seconds: how long requests wait for an executor that is away before they fail.
        drain_seconds: how long requests may go on after a shutdown began.
    """

    model_dir: Path
    listen: str = "127.0.0.1:50051"
    executor: str = "127.0.0.1:50052"
    store: str = "127.0.0.1:50053"
    admin_listen: str = ""
    local_listen: str = ""
    auth_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    metrics_listen: str = ""
    max_requests: int = 1024
    max_message_bytes: int = MAX_MESSAGE_BYTES
    max_prompt_bytes: int = 4 << 20
    patience_seconds: float = 30.0
    drain_seconds: float = 10.0

    def __post_init__(self) -> None:
        check_address("listen", self.listen)
        check_address("executor", self.executor)
        if self.store:
            check_address("store", self.store)
        if self.admin_listen:
            check_address("admin_listen", self.admin_listen)
        if self.local_listen and not self.local_listen.startswith("unix:"):
            raise ValueError(f"local_listen is {self.local_listen!r}: give unix:/path")
        server_tls(self.tls_cert, self.tls_key, self.tls_client_ca)
        if self.metrics_listen:
            check_tcp_address("metrics_listen", self.metrics_listen)
        for name, least, most in (
            ("max_requests", 1, 1 << 20),
            ("max_message_bytes", 1 << 10, 1 << 30),
            ("max_prompt_bytes", 1, 1 << 30),
            ("patience_seconds", 0, 86_400),
            ("drain_seconds", 0, 86_400),
        ):
            value = getattr(self, name)
            if not math.isfinite(value) or not least <= value <= most:
                raise ValueError(f"{name} is {value}: choose from {least} to {most}")
        for file in ("config.json", "tokenizer.json"):
            if not (self.model_dir / file).is_file():
                raise ValueError(
                    f"{self.model_dir} holds no {file}: give the folder of a Hugging Face checkpoint"
                )

    @property
    def tls(self) -> ServerTls | None:
        """Of the public and the admin address; None for plaintext."""
        return server_tls(self.tls_cert, self.tls_key, self.tls_client_ca)
