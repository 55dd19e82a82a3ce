"""The committed stubs are what the .proto files generate, and the .proto files hold to buf's rules."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROTOS = Path(__file__).resolve().parents[2] / "protos"


def test_committed_stubs_are_up_to_date(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(PROTOS / "generate.py"), str(tmp_path)], check=True)
    fresh = {path.name: path.read_bytes() for path in (tmp_path / "lorikeet/v1").iterdir()}
    committed = {path.name: path.read_bytes() for path in (PROTOS / "lorikeet/v1").glob("*_pb2*")}
    assert fresh.keys() == committed.keys()
    stale = [name for name, content in fresh.items() if committed[name] != content]
    assert not stale, f"run `python protos/generate.py`: {stale}"


@pytest.mark.parametrize("command", [["lint"], ["format", "--diff", "--exit-code"]])
def test_buf_accepts_the_protos(command: list[str]) -> None:
    buf = Path(sys.executable).with_name("buf")
    tool = str(buf) if buf.exists() else shutil.which("buf")
    assert tool, "buf comes with the dev extra (buf-bin)"
    result = subprocess.run([tool, *command], cwd=PROTOS, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
