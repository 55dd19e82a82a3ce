import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from adapter_store.config import StoreConfig
from cli.flags import field_texts, flag_name, to_flags
from executor.config import ExecutorConfig
from frontend.config import FrontendConfig
from tests.support.cli_runner import lorikeet

SERVICES = {"store": StoreConfig, "executor": ExecutorConfig, "frontend": FrontendConfig}


@pytest.mark.parametrize("config_class", SERVICES.values())
def test_every_setting_is_documented(config_class: type[Any]) -> None:
    assert list(field_texts(config_class)) == [field.name for field in dataclasses.fields(config_class)]


@pytest.mark.parametrize("name", SERVICES)
def test_every_setting_has_a_flag(name: str) -> None:
    done = lorikeet(name, "--help", env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"})
    assert done.code == 0
    for field in dataclasses.fields(SERVICES[name]):
        assert flag_name(field.name) in done.out


def test_flags_say_what_they_take() -> None:
    shown = {
        flag: kind
        for name in SERVICES
        for flag, kind in re.findall(
            r"(--[a-z-]+) +([A-Z]+) ",
            lorikeet(name, "--help", env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"}).out,
        )
    }
    kinds = {
        "DIR": ("--data-dir", "--arena-dir", "--model-dir", "--roots", "--watch-folder"),
        "FILE": ("--auth-file", "--tls-cert", "--tls-key", "--tls-client-ca"),
        "ADDRESS": (
            "--listen",
            "--admin-listen",
            "--local-listen",
            "--metrics-listen",
            "--store",
            "--executor",
        ),
    }
    for kind, flags in kinds.items():
        assert {flag: shown.get(flag) for flag in flags} == dict.fromkeys(flags, kind)


def test_to_flags_repeats_lists_and_leaves_out_none() -> None:
    config = StoreConfig(data_dir=Path("/data"), roots=(Path("/"), Path("/tmp")), arena_dir=None, workers=3)
    flags = to_flags(config)
    assert "--data-dir=/data" in flags
    assert [flag for flag in flags if flag.startswith("--roots")] == ["--roots=/", "--roots=/tmp"]
    assert "--workers=3" in flags
    assert not any(flag.startswith("--arena-dir") for flag in flags)


def test_wrong_flags_exit_with_2() -> None:
    assert lorikeet("store", "--colour", "blue").code == 2
    done = lorikeet("store", "--data-dir", "/data", "--workers", "many")
    assert done.code == 2
    assert "store.workers: " in done.err
