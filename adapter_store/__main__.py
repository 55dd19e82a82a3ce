"""`python -m adapter_store`: the store alone, without the command-line package."""

import argparse
from dataclasses import fields
from pathlib import Path

from adapter_store.config import StoreConfig
from rpc.server import run_service
from rpc.tuning import share_no_products


def main(argv: list[str] | None = None) -> None:
    share_no_products()
    from adapter_store.app import run

    defaults = {field.name: field.default for field in fields(StoreConfig)}
    parser = argparse.ArgumentParser(prog="adapter_store", description="Lorikeet's adapter store.")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--listen", default=defaults["listen"])
    parser.add_argument("--root", dest="roots", type=Path, action="append", default=[])
    parser.add_argument("--arena-dir", type=Path)
    parser.add_argument("--arena-bytes", type=int, default=defaults["arena_bytes"])
    options = vars(parser.parse_args(argv))
    try:
        config = StoreConfig(**{**options, "roots": tuple(options["roots"])})
        run_service(lambda stop: run(config, stop=stop), process_name="adapter_store", gives_way=True)
    except (ValueError, OSError) as error:
        parser.exit(1, f"adapter_store: {error}\n")


main()
