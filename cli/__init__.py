"""The `lorikeet` command: starts and watches the services, and is a client of them."""
