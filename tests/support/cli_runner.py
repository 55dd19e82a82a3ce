"""Runs `lorikeet ...` inside the test's process."""

from dataclasses import dataclass

from typer.testing import CliRunner

from cli.app import app


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str


def lorikeet(*arguments: str, stdin: str = "", env: dict[str, str] | None = None) -> Finished:
    """Runs one command to its end; an exception that it should have reported fails the test."""
    result = CliRunner().invoke(app, list(arguments), input=stdin, env=env)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Finished(code=result.exit_code, out=result.stdout, err=result.stderr)
