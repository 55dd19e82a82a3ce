"""Runs a frontend alone: `python -m frontend --model-dir DIR`. The CLI offers the same with more comfort."""

import argparse
import asyncio
from pathlib import Path

from frontend.app import run
from frontend.config import FrontendConfig
from rpc.server import run_service


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m frontend", description="Text in, text out, for one executor."
    )
    parser.add_argument(
        "--model-dir", type=Path, required=True, help="folder with config, tokenizer and template"
    )
    for name in ("listen", "executor", "store"):
        default = getattr(FrontendConfig, name)
        parser.add_argument(f"--{name}", default=default, help=f"address (default {default})")
    arguments = parser.parse_args()
    try:
        config = FrontendConfig(**vars(arguments))
    except ValueError as error:
        parser.error(str(error))

    async def serve(stop: asyncio.Event) -> None:
        await run(config, stop=stop)

    run_service(serve, process_name="frontend")


if __name__ == "__main__":
    main()
