"""Certificates for servers and clients on loopback."""

from pathlib import Path

import trustme


class Pki:
    """An authority, with a certificate for loopback and one for a client, as files."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        authority = trustme.CA()
        self.ca, self.cert, self.key = folder / "ca.pem", folder / "cert.pem", folder / "key.pem"
        self.client_cert, self.client_key = folder / "client.pem", folder / "client-key.pem"
        authority.cert_pem.write_to_path(self.ca)
        issued = authority.issue_cert("127.0.0.1", "localhost")
        issued.cert_chain_pems[0].write_to_path(self.cert)
        issued.private_key_pem.write_to_path(self.key)
        client = authority.issue_cert("client@example.org")
        client.cert_chain_pems[0].write_to_path(self.client_cert)
        client.private_key_pem.write_to_path(self.client_key)
