"""Operators are told what to do at each error that services make, and at no other."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
SERVICES = ("rpc", "frontend", "executor", "adapter_store")
DOCUMENTS = (ROOT / "docs" / "operations.md", ROOT / "docs" / "adapters.md")

OPERATORS = (
    "UNAUTHENTICATED",
    "PERMISSION_DENIED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "DATA_LOSS",
    "RESOURCE_EXHAUSTED",
    "UNAVAILABLE",
    "INTERNAL",
    "DEADLINE_EXCEEDED",
)
"""Codes of what an operator may have to do something about; others are the caller's to mend."""


def source_files() -> Iterator[Path]:
    for service in SERVICES:
        yield from (ROOT / service).rglob("*.py")


def calls() -> Iterator[ast.Call]:
    for file in source_files():
        yield from (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call))


def reasons_by_code() -> dict[str, set[str]]:
    """Of errors that are made by a call that has both code and reason in it, as text."""
    found: dict[str, set[str]] = {code: set() for code in OPERATORS}
    for call in calls():
        arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
        # resource_exhausted("REASON", ...), or LoadFailed(code=Code.RESOURCE_EXHAUSTED, reason="REASON").
        names = {ast.unparse(node).rpartition(".")[2].upper() for node in (call.func, *arguments)}
        texts = {node.value for node in arguments if isinstance(node, ast.Constant)}
        reasons = {text for text in texts if isinstance(text, str) and re.fullmatch("[A-Z]+(_[A-Z]+)*", text)}
        for code in names.intersection(OPERATORS):
            found[code] |= reasons
    return found


def reasons_in(document: Path) -> set[str]:
    """In tables, as code."""
    rows = [line for line in document.read_text().splitlines() if line.startswith("| ")]
    return {reason for row in rows for reason in re.findall(r"`([A-Z]+(?:_[A-Z]+)*)`", row)}


def test_each_error_is_explained() -> None:
    explained = {reason for document in DOCUMENTS for reason in reasons_in(document)}
    for code, made in reasons_by_code().items():
        assert made, f"no error of {code} was found: are they made in another way now?"
        assert made <= explained, f"{code}: explain {sorted(made - explained)} in docs/operations.md"


def test_what_is_explained_is_made() -> None:
    text = "\n".join(file.read_text() for file in source_files())
    for document in DOCUMENTS:
        for reason in reasons_in(document):
            assert f'"{reason}"' in text, f"{document.name}: {reason}"
