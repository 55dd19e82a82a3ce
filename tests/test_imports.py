"""What must stay out of a process that has no use for it: import-linter does not see what others import."""

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "triton", "peft"}
# `lorikeet --help` is read by people who wait for it.
SLOW = HEAVY | {"grpc", "google.protobuf", "numpy", "tokenizers", "jinja2", "uvloop"}


def loaded_by(code: str) -> set[str]:
    """The modules in sys.modules of a fresh interpreter after `code`, SystemExit included."""
    program = f"""
import contextlib, io, json, sys
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
{chr(10).join("    " + line for line in code.splitlines())}
print(json.dumps(sorted(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    return set(json.loads(done.stdout))


def command(*arguments: str) -> str:
    return f"import sys\nsys.argv = ['lorikeet', *{list(arguments)!r}]\nfrom cli.__main__ import main\nmain()"


@pytest.mark.parametrize(
    ("package", "others"),
    [
        ("frontend.app", {"numpy", "executor", "adapter_store"}),
        ("adapter_store.app", {"executor", "frontend"}),
    ],
)
def test_services_without_a_model_leave_torch_and_each_other_out(package: str, others: set[str]) -> None:
    modules = loaded_by(f"import {package}")
    assert package in modules
    assert modules & (HEAVY | others) == set()


@pytest.mark.parametrize(
    "arguments", [["--help"], ["generate", "--help"], ["serve", "--help"], ["adapters", "load", "--help"]]
)
def test_help_imports_nothing_slow(arguments: list[str]) -> None:
    modules = loaded_by(command(*arguments))
    assert "typer" in modules
    assert modules & SLOW == set()


def test_a_client_leaves_torch_out() -> None:
    modules = loaded_by(command("generate", "hello", "--target", "127.0.0.1:1"))
    assert "grpc" in modules
    assert modules & HEAVY == set()


def test_the_demo_hears_ctrl_c_before_it_imports_what_takes_its_time() -> None:
    modules = loaded_by("import demo.run")
    assert "cli.interrupts" in modules
    assert modules & (SLOW | {"asyncio", "rich"}) == set()


@pytest.mark.parametrize("service", ["frontend", "store", "executor"])
def test_help_of_a_service_leaves_torch_out(service: str) -> None:
    modules = loaded_by(command(service, "--help"))
    assert "grpc" in modules or service != "frontend"
    assert modules & HEAVY == set()


def test_the_probe_sees_what_is_imported() -> None:
    assert {"json", "decimal"} <= loaded_by("import decimal")
