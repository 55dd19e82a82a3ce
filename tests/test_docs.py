"""What README and docs/ say that can be checked: links, commands, flags, settings and metrics exist."""

import asyncio
import dataclasses
import functools
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from typer.main import get_command

from adapter_store.config import StoreConfig
from adapter_store.service.metrics import StoreMetrics
from adapter_store.service.statistics import StoreStatistics
from adapter_store.tiers.counters import Counters
from cli.app import app
from cli.commands.services import service_app
from cli.serving.settings import Settings
from executor.config import ExecutorConfig
from executor.service.metrics import ExecutorMetrics
from frontend.adapters.catalog import Catalog
from frontend.config import FrontendConfig
from frontend.metrics import FrontendMetrics
from frontend.usage import UsageTable
from lorikeet.v1 import executor_pb2

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOTES = sorted((ROOT / "bench").rglob("*.md"))
SECTIONS = {"frontend": FrontendConfig, "executor": ExecutorConfig, "store": StoreConfig}


def _each(documents: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("document", documents, ids=lambda path: str(path.relative_to(ROOT)))


each_document = _each(DOCUMENTS)
each_document_or_note = _each(DOCUMENTS + NOTES)


def pieces_of_code(text: str) -> Iterator[str]:
    """Lines of blocks of code, continued ones joined, and what stands between single backticks."""
    fences = re.compile(r"^```.*?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    blocks = [*fences.findall(text), *re.findall(r"^    \S.*$", text, re.MULTILINE)]
    for block in blocks:
        yield from block.replace("\\\n", " ").splitlines()
    yield from (" ".join(code.split()) for code in re.findall(r"`([^`]+)`", fences.sub("", text)))


@functools.cache
def the_command(service: str = "") -> Any:
    """`lorikeet`, or `lorikeet frontend` and its like, whose flags are only made when they run."""
    return get_command(service_app(service) if service else app)


def check_command(arguments: list[str]) -> list[str]:
    """What is wrong with the arguments of `lorikeet`, as far as they were written out."""
    command = the_command()
    words = iter(arguments)
    for word in words:
        if word.startswith("-"):
            options = {
                name: option for option in command.params for name in (*option.opts, *option.secondary_opts)
            }
            name = word.partition("=")[0]
            if name not in options and name not in ("--help", "-h"):
                return [f"{command.name} has no {name}"]
            if name in options and not options[name].is_flag and "=" not in word:
                next(words, None)
        elif hasattr(command, "commands") and re.fullmatch(r"[a-z]+", word):
            if word not in command.commands:
                return [f"{command.name} has no command {word}"]
            command = the_command(word) if word in SECTIONS else command.commands[word]
    return []


@functools.cache
def all_flags() -> set[str]:
    found: set[str] = set()
    commands: list[Any] = [the_command(), *map(the_command, SECTIONS)]
    while commands:
        command = commands.pop()
        commands += getattr(command, "commands", {}).values()
        found |= {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    return found


@each_document
def test_commands_and_flags_exist(document: Path) -> None:
    wrong: list[str] = []
    flags = all_flags()
    for code in pieces_of_code(document.read_text()):
        if match := re.match(r"(?:\w+=\S+ )*(?:\.venv/bin/)?lorikeet (.*)", code.strip()):
            wrong += check_command(shlex.split(re.sub(r"[][]", " ", match[1]), comments=True))
        elif match := re.match(r"--[a-z-]+", code):
            wrong += [] if match[0] in flags else [f"no command has {match[0]}"]
    assert not wrong


@pytest.mark.parametrize(
    "line",
    [
        "adapters lode x",
        "adapters load x y --pinned",
        "--tokens x generate y",
        "store --root=x",
        "--token store serve --roots x",
    ],
)
def test_what_does_not_exist_is_found(line: str) -> None:
    assert check_command(line.split())


@each_document
def test_settings_exist(document: Path) -> None:
    for code in pieces_of_code(document.read_text()):
        for section, field in re.findall(r"\b(frontend|executor|store)\.([a-z_]+)\b(?!\()", code):
            fields = {field.name for field in dataclasses.fields(SECTIONS[section])}
            assert field in fields | {"proto", "py"}, f"{section} has no setting {field}"


def anchors(text: str) -> set[str]:
    """What a link may name after its #, as GitHub makes it of headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@each_document_or_note
def test_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if "://" not in link:
            path, _, anchor = link.partition("#")
            target = document.parent / path if path else document
            assert target.exists(), link
            assert not anchor or anchor in anchors(target.read_text()), link


def test_every_decision_is_numbered_and_listed() -> None:
    index = (ROOT / "docs" / "adr" / "README.md").read_text()
    for decision in (ROOT / "docs" / "adr").glob("[0-9]*.md"):
        assert decision.read_text().startswith(f"# {decision.name[:4]}: "), decision.name
        assert f"- [{decision.name[:4]}]({decision.name})" in index, decision.name


def test_settings_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("LORIKEET_")]:
        monkeypatch.delenv(name)
    blocks = re.findall(r"^```yaml\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        file = tmp_path / "settings.yaml"
        file.write_text(block)
        Settings.load({}, file)


@functools.cache
def source_files() -> list[Path]:
    folders = (
        "adapter_store",
        "bench",
        "cli",
        "demo",
        "executor",
        "frontend",
        "kernels",
        "protos",
        "rpc",
        "tests",
    )
    return [path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).rglob("*.py")]


@each_document_or_note
def test_files_that_are_named_exist(document: Path) -> None:
    for code in pieces_of_code(document.read_text()):
        if re.fullmatch(r"(?:[a-z_]+/)*[a-z_]+\.py", code):
            # By the end of its path, as documents shorten them.
            assert any(path.match(code) for path in source_files()), code


def test_every_benchmark_is_listed_and_every_result_explained() -> None:
    listed = (ROOT / "bench" / "README.md").read_text()
    for module in (ROOT / "bench").glob("*.py"):
        assert f"`{module.stem}`" in listed, module.name
    explained = "".join(document.read_text() for document in DOCUMENTS + NOTES)
    for result in (ROOT / "bench" / "results").iterdir():
        assert result.name in explained, result.name


def metric_names() -> set[str]:
    """The names that the three services export, as Prometheus shows them."""
    gather = (
        FrontendMetrics(usage=UsageTable(), catalog=Catalog(has_store=True), queues=dict).gather,
        ExecutorMetrics(lambda _: executor_pb2.ExecutorStatistics()).gather,
        StoreMetrics(lambda: _zeros(StoreStatistics), Counters()).gather,
    )
    families = [family for each in gather for family in asyncio.run(each())]
    return {family.name + ("_total" if family.type == "counter" else "") for family in families}


def _zeros(kind: type[Any]) -> Any:
    if not dataclasses.is_dataclass(kind):
        return kind()
    hints = get_type_hints(kind)
    return kind(**{field.name: _zeros(hints[field.name]) for field in dataclasses.fields(kind)})


def test_metrics_are_those_of_the_services() -> None:
    names = metric_names()
    written = set(re.findall(r"`(lorikeet_\w+)`", (ROOT / "docs" / "adapters.md").read_text()))
    assert written == names
    watched = set(re.findall(r"`(lorikeet_\w+)", (ROOT / "docs" / "operations.md").read_text()))
    assert watched <= names
