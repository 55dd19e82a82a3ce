"""`lorikeet serve` for real: three processes, the demo's model, clients from outside."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli_serving import DEMO, MODEL, SMALL, Serving, adapter, run, serving, until

README = DEMO.parent / "README.md"
QUESTION = ("generate", "--chat", "What is the password?", "--temperature", "0")


@pytest.fixture(scope="module")
def passwords() -> dict[str, str]:
    return json.loads((DEMO / "passwords.json").read_text())


def test_serves_loads_unloads_and_leaves_nothing_behind(tmp_path: Path, passwords: dict[str, str]) -> None:
    with serving(tmp_path, f"--adapter=attention={adapter('attention')}", f"--adapter-root={DEMO}") as server:
        assert server.adapters == ["attention"]
        assert passwords["attention"] in server.lorikeet(*QUESTION, "--adapter", "attention").out
        assert not any(password in server.lorikeet(*QUESTION).out for password in passwords.values())
        assert passwords["attention"] in _python_client_of_the_readme(server)
        assert "FINISH_REASON_" in _buf_curl_of_the_readme(server)

        loaded = server.lorikeet("adapters", "load", "second", str(adapter("mlp")))
        assert loaded.out.startswith("second: ")
        assert passwords["mlp"] in server.lorikeet(*QUESTION, "--adapter", "second").out
        listed = [line.split("\t")[0] for line in server.lorikeet("adapters", "list").out.splitlines()]
        assert listed == ["attention", "second"]
        assert server.lorikeet("adapters", "unload", "second").code == 0
        assert "NOT_FOUND" in server.lorikeet(*QUESTION, "--adapter", "second").err

        places, children = server.places(), server.children().values()
        assert {child.service for child in children} == {"store", "executor", "frontend"}
        assert all(place.exists() for place in places)
        server.process.send_signal(signal.SIGTERM)
        _, errors = server.process.communicate(timeout=60)
        assert server.process.returncode == 0, errors
        assert [place for place in places if place.exists()] == []
        assert not any(child.alive() for child in children)


def _python_client_of_the_readme(server: Serving) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    return _output([sys.executable, "-c", code.replace("127.0.0.1:50051", server.target)])


def _buf_curl_of_the_readme(server: Serving) -> str:
    (command,) = re.findall(r"^buf curl .*?Generate$", README.read_text(), flags=re.DOTALL | re.MULTILINE)
    words = shlex.split(command.replace("\\\n", " ").replace("127.0.0.1:50051", server.target))
    return _output([str(Path(sys.executable).with_name("buf")), *words[1:]])


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_is_killed_comes_back_with_everything(tmp_path: Path, passwords: dict[str, str]) -> None:
    """First each child, then the server itself."""
    question = (*QUESTION, "--adapter", "attention")
    with serving(tmp_path, f"--adapter=attention={adapter('attention')}") as server:
        for service in ("frontend", "store", "executor"):
            before = server.children()[service]
            os.kill(before.pid, signal.SIGKILL)
            until(lambda service=service, pid=before.pid: _replaced(server, service, pid))
            # Where it was the frontend that died, its clients see it for a moment.
            until(lambda: passwords["attention"] in server.lorikeet(*question).out)
        places, children = server.places(), server.children().values()
        server.process.kill()
        _, errors = server.process.communicate()
        for service in ("frontend", "store", "executor"):
            assert f"lorikeet: {service} was ended by SIGKILL; starting it again" in errors
        # The executor answers before its supervisor has looked again, and the kill may come in between.
        assert re.search(r"lorikeet: (frontend|store) is back after [0-9.]+ s", errors)
        until(lambda: not any(child.alive() for child in children))
    with serving(tmp_path) as server:
        assert [place for place in places if place.exists()] == []
        assert server.adapters == ["attention"]
        assert passwords["attention"] in server.lorikeet(*question).out
        places = server.places()
        # As when a terminal is closed; where the tests were started by nohup, nobody would hear it.
        is_heard = signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
        server.process.send_signal(signal.SIGHUP if is_heard else signal.SIGINT)
        server.process.communicate(timeout=60)
        assert server.process.returncode == 0
        assert [place for place in places if place.exists()] == []


def _replaced(server: Serving, service: str, pid: int) -> bool:
    children = server.children()
    return service in children and children[service].pid != pid


def test_a_port_in_use_is_said_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run(
            "--model", str(MODEL), "--data-dir", str(tmp_path), "--listen", address, command=("serve",)
        )
    assert done.returncode == 2
    assert re.fullmatch(
        rf"lorikeet: cannot listen on {address}: .*; choose another with --listen\n", done.stderr
    )


def test_a_model_that_cannot_be_loaded_stops_everything(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    (model / "model.safetensors").write_bytes(b"no weights")
    done = run("--model", str(model), "--data-dir", str(tmp_path / "data"), *SMALL, command=("serve",))
    assert done.returncode == 1
    assert "executor ended with exit code 2 and is given up; its last lines:" in done.stderr
    assert "model.safetensors" in done.stderr


def test_an_adapter_that_is_refused_stops_everything(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(adapter("mlp"), broken)
    (broken / "adapter_model.safetensors").write_bytes(b"pickle")
    flags = ("--model", str(MODEL), "--data-dir", str(tmp_path / "data"), "--listen", "127.0.0.1:0", *SMALL)
    done = run(*flags, f"--adapter=broken={broken}", command=("serve",))
    assert done.returncode == 1
    assert "lorikeet: INVALID_ARGUMENT" in done.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "no model: give its folder with --model"),
        (["--model", "/nowhere"], "/nowhere holds no"),
        (["--model", str(MODEL), "--adapter", "alice"], "write NAME=SOURCE"),
        (
            ["--model", str(MODEL), "--adapter", "alice=/nowhere"],
            "adapter alice: there is no folder /nowhere",
        ),
        (["--model", str(MODEL), "--set", "max_running=1"], "write SECTION.FIELD=VALUE"),
        (["--model", str(MODEL), "--set", "executor.page_size=3"], "page_size is 3"),
    ],
)
def test_wrong_settings_are_said_before_anything_starts(tmp_path: Path, flags: list[str], said: str) -> None:
    done = run(*flags, "--data-dir", str(tmp_path), command=("serve",))
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
