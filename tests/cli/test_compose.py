"""compose.yaml says what the services understand. That containers run, deploy/compose_test.sh shows."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.serving.settings import Settings
from tests.support.cli_serving import DEMO, MODEL

ROOT = DEMO.parent
FILES = ("compose.yaml", "compose.gpu.yaml")
SERVICES = ("store", "executor", "frontend")


def read(file: str, section: str = "services", **variables: str) -> dict[str, Any]:
    """A part of a file, with the defaults of variables that are not given."""
    text = (ROOT / file).read_text()
    text = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda match: variables.get(match[1], match[2]), text)
    return yaml.safe_load(text)[section]


def commands() -> list[tuple[str, list[str]]]:
    return [(name, service["command"]) for file in FILES for name, service in read(file).items()]


def flags_of(command: list[str]) -> dict[str, str]:
    """Field to value, of `--some-flag=value` and `--some-flag value`."""
    words = [part for word in command[1:] for part in word.split("=", 1)]
    assert all(word.startswith("--") for word in words[::2])
    return {flag[2:].replace("-", "_"): value for flag, value in zip(words[::2], words[1::2], strict=True)}


def config_of(command: list[str], folder: Path) -> Any:
    """The service's own settings, with the container's folders where they are on this machine."""
    places = {"/model": MODEL, "/adapters": DEMO / "adapters", "/data": folder, "/arena": folder}
    flags = {field: str(places.get(value, value)) for field, value in flags_of(command).items()}
    settings = Settings.load({command[0]: flags})
    return getattr(settings, f"{command[0]}_config")()


@pytest.mark.parametrize(("name", "command"), commands())
def test_the_commands_are_valid_settings(name: str, command: list[str], tmp_path: Path) -> None:
    assert command[0] == name
    assert config_of(command, tmp_path).listen.startswith("0.0.0.0:")


def test_the_services_find_each_other(tmp_path: Path) -> None:
    services = read("compose.yaml")
    assert set(services) == set(SERVICES)
    configs = {name: config_of(service["command"], tmp_path) for name, service in services.items()}
    for caller, callee in (("executor", "store"), ("frontend", "store"), ("frontend", "executor")):
        port = configs[callee].listen.rpartition(":")[2]
        assert getattr(configs[caller], callee) == f"{callee}:{port}"
    assert configs["executor"].arena_dir == configs["store"].arena_dir
    (published,) = services["frontend"]["ports"]
    # Admin calls are for whoever reaches the port: so only this machine may.
    assert configs["frontend"].admin_listen == configs["frontend"].listen
    assert re.fullmatch(r"127\.0\.0\.1:\d+:50051", published)


@pytest.mark.parametrize("size", [{}, {"ARENA_SIZE": "700m"}, {"ARENA_SIZE": "64g"}])
def test_the_arena_fills_the_memory_that_it_is_given(size: dict[str, str], tmp_path: Path) -> None:
    arena_bytes = config_of(read("compose.yaml", **size)["store"]["command"], tmp_path).arena_bytes
    options = read("compose.yaml", "volumes", **size)["arena"]["driver_opts"]["o"]
    number, unit = re.fullmatch(r"size=(\d+)([mg]),.*", options).groups()  # pyright: ignore[reportOptionalMemberAccess]
    assert 0.92 < arena_bytes / (int(number) << {"m": 20, "g": 30}[unit]) < 1


def test_a_stop_leaves_time_to_drain(tmp_path: Path) -> None:
    for service in read("compose.yaml").values():
        drain_seconds = config_of(service["command"], tmp_path).drain_seconds
        assert float(service["stop_grace_period"].removesuffix("s")) > drain_seconds + 5


def test_health_is_asked_for_where_no_certificate_is_needed(tmp_path: Path) -> None:
    for service in read("compose.yaml").values():
        config = config_of(service["command"], tmp_path)
        program, target = service["healthcheck"]["test"][1:4], service["healthcheck"]["test"][4]
        assert program == ["python", "-m", "rpc.healthcheck"]
        port = config.listen.rpartition(":")[2]
        assert target == (getattr(config, "local_listen", "") or f"127.0.0.1:{port}")
