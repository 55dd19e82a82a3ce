"""`python -m executor --model-dir DIR ...`: what `lorikeet executor` does, without the other commands."""

import argparse
import asyncio
import dataclasses
import sys
from pathlib import Path
from typing import Any, get_type_hints

from executor.config import ExecutorConfig
from rpc.server import run_service


def parse(arguments: list[str]) -> ExecutorConfig:
    """One flag for each setting, named and described as in `ExecutorConfig`. Exits on bad ones."""
    parser = argparse.ArgumentParser(prog="python -m executor", description=ExecutorConfig.__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    hints = get_type_hints(ExecutorConfig)
    for field in dataclasses.fields(ExecutorConfig):
        kind = next((kind for kind in (Path, int, float) if kind in _members(hints[field.name])), str)
        if hints[field.name] is bool:
            parser.add_argument(_flag(field.name), action=argparse.BooleanOptionalAction)
            continue
        parser.add_argument(_flag(field.name), type=kind, metavar=kind.__name__)
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    try:
        return ExecutorConfig(**given)
    except (TypeError, ValueError) as error:
        parser.error(str(error))


def main() -> None:
    config = parse(sys.argv[1:])

    async def serve(stop: asyncio.Event) -> None:
        from executor.app import run

        await run(config, stop=stop)

    run_service(serve, process_name="executor")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _members(hint: Any) -> tuple[Any, ...]:
    return getattr(hint, "__args__", (hint,))


if __name__ == "__main__":
    main()
