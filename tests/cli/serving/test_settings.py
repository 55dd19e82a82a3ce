from pathlib import Path
from typing import Any

import pytest

from cli.errors import CliError
from cli.serving.settings import Settings


@pytest.fixture(autouse=True)
def _no_settings_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("LORIKEET_"):
            monkeypatch.delenv(name)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    return folder


def yaml_file(folder: Path, text: str) -> Path:
    path = folder / "lorikeet.yaml"
    path.write_text(text)
    return path


def test_flags_over_environment_over_file_over_defaults(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = yaml_file(
        tmp_path,
        "timeout: 1\ntarget: file:1\nlisten: file:2\n"
        "executor: {max_running: 1, max_waiting: 1, page_size: 32, kv_bytes: 3MiB}\n",
    )
    monkeypatch.setenv("LORIKEET_TIMEOUT", "2")
    monkeypatch.setenv("LORIKEET_TARGET", "env:1")
    monkeypatch.setenv("LORIKEET_EXECUTOR__MAX_RUNNING", "2")
    monkeypatch.setenv("LORIKEET_EXECUTOR__MAX_WAITING", "2")
    settings = Settings.load({"timeout": 3, "model": model, "executor": {"max_running": "3"}}, file)
    assert (settings.timeout, settings.target, settings.listen) == (3, "env:1", "file:2")
    executor = settings.executor_config()
    assert (executor.max_running, executor.max_waiting, executor.page_size) == (3, 2, 32)
    assert executor.kv_bytes == 3 << 20
    assert executor.adapter_slots == type(executor).adapter_slots


def test_flags_that_were_not_given_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORIKEET_STORE__WORKERS", "7")
    settings = Settings.load({"store": {"workers": None, "data_dir": "/data"}})
    assert settings.store_config().workers == 7


def test_empty_variables_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORIKEET_TARGET", "")
    assert Settings.load({}).target == "127.0.0.1:50051"


@pytest.mark.parametrize(
    ("listen", "target"),
    [
        ("127.0.0.1:7000", "127.0.0.1:7000"),
        ("0.0.0.0:7000", "127.0.0.1:7000"),
        ("[::]:7000", "127.0.0.1:7000"),
        ("unix:/run/l.sock", "unix:/run/l.sock"),
    ],
)
def test_clients_call_what_the_same_settings_serve(listen: str, target: str) -> None:
    assert Settings.load({"listen": listen}).target == target
    assert Settings.load({"listen": listen, "target": "other:1"}).target == "other:1"


def test_the_model_is_the_default_of_both_services(model: Path) -> None:
    settings = Settings.load({"model": model, "frontend": {"store": ""}})
    assert settings.frontend_config().model_dir == model
    assert settings.executor_config().model_dir == model
    assert settings.frontend_config().store == ""


def test_lists_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LORIKEET_STORE__ROOTS", f'["{tmp_path}"]')
    assert Settings.load({"store": {"data_dir": "/data"}}).store_config().roots == (tmp_path,)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"timeout": "soon"}, "timeout: "),
        ({"timeout": -1}, "timeout: "),
        ({"executor": {"max_runing": 1}}, "executor.max_runing: there is no such setting"),
        ({"executor": {"max_running": "many"}}, "executor.max_running: "),
        ({"executor": {"queue_policy": "lifo"}}, "executor.queue_policy: "),
        ({"store": {"arena_bytes": "1 parsec"}}, "store.arena_bytes: "),
        ({"log_level": "LOUD"}, "log_level: "),
    ],
)
def test_errors_name_the_field(flags: dict[str, Any], said: str) -> None:
    with pytest.raises(CliError, match="^" + said.replace(".", r"\.")) as failure:
        Settings.load(flags)
    assert failure.value.exit_code == 2


def test_a_misspelt_variable_of_a_section_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORIKEET_EXECUTOR__MAX_RUNING", "1")
    with pytest.raises(CliError, match=r"executor\.max_runing: there is no such setting"):
        Settings.load({})


def test_what_a_service_refuses_is_an_error_too(model: Path) -> None:
    settings = Settings.load({"model": model, "executor": {"page_size": 3}})
    with pytest.raises(CliError, match="executor: page_size is 3: choose"):
        settings.executor_config()


def test_a_missing_setting_says_how_to_give_it() -> None:
    with pytest.raises(
        CliError, match=r"store\.data_dir is missing: give --data-dir, LORIKEET_STORE__DATA_DIR"
    ):
        Settings.load({}).store_config()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "is not valid YAML"),
        ("- a\n", "must hold a mapping"),
        ("colour: blue", "colour: there is no such setting"),
        ("executor: {max_running: 1}\nlisten: a:1\nexecutor: {page_size: 16}\n", "executor is said twice"),
        ("executor:\n  max_running: 1\n  max_running: 2\n", "max_running is said twice"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(CliError, match=said):
        Settings.load({}, yaml_file(tmp_path, text))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CliError, match="cannot read the settings file"):
        Settings.load({}, tmp_path / "none.yaml")


def test_an_empty_file_sets_nothing(tmp_path: Path) -> None:
    settings = Settings.load({}, yaml_file(tmp_path, "# nothing yet\n"))
    assert settings.model_dump() == Settings.load({}).model_dump()


def test_a_section_of_comments_sets_nothing(tmp_path: Path) -> None:
    settings = Settings.load({}, yaml_file(tmp_path, "executor:\n  # max_running: 128\nadapters:\nstore:\n"))
    assert settings.model_dump() == Settings.load({}).model_dump()


def test_what_an_anchor_brings_may_be_said_again(tmp_path: Path) -> None:
    text = (
        "executor: &a {drain_seconds: 1}\nstore: {<<: *a, workers: 3}\nfrontend: {<<: *a, drain_seconds: 4}\n"
    )
    settings = Settings.load({}, yaml_file(tmp_path, text))
    seconds = (section.drain_seconds for section in (settings.store, settings.executor, settings.frontend))
    assert tuple(seconds) == (1, 1, 4)


def test_folders_in_the_environment_may_be_one_or_many(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, folders in (("./a", ["./a"]), ("[./a, /b]", ["./a", "/b"]), ('["./a"]', ["./a"])):
        monkeypatch.setenv("LORIKEET_ADAPTER_ROOTS", text)
        assert Settings.load({}).adapter_roots == [Path(folder) for folder in folders]


@pytest.mark.parametrize("name", ["ADAPTERS", "EXECUTOR"])
def test_a_variable_that_is_no_json_says_what_to_write(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"LORIKEET_{name}", "alice=./a")
    with pytest.raises(CliError, match=f"^LORIKEET_{name} must be a JSON object; .* LORIKEET_{name}__NAME="):
        Settings.load({})


def test_a_list_may_be_given_as_one_value_or_as_yaml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORIKEET_STORE__ROOTS", "/adapters")
    settings = Settings.load({"store": {"sources": "[s3://a/, hf://b/]"}})
    assert settings.store.given() == {"roots": (Path("/adapters"),), "sources": ("s3://a/", "hf://b/")}
    with pytest.raises(CliError, match=r"store\.sources"):
        Settings.load({"store": {"sources": "[s3://a/}]"}})
