"""The file of tokens on disk."""

import json
from pathlib import Path

import pytest

from rpc.auth_file import AuthFile
from rpc.tokens import new_token


def write(path: Path, *hashes: str, mode: int = 0o600) -> None:
    entries = [{"name": f"n{i}", "role": "admin", "token_sha256": digest} for i, digest in enumerate(hashes)]
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(entries))
    fresh.chmod(mode)
    fresh.rename(path)


def test_a_change_counts_and_a_broken_one_does_not(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    (old, old_hash), (new, new_hash) = new_token(), new_token()
    write(path, old_hash)
    auth = AuthFile(path)
    assert auth.refresh()
    assert auth.tokens.find(old)
    write(path, new_hash)
    assert auth.refresh()
    assert not auth.tokens.find(old)
    assert auth.tokens.find(new)
    path.write_text("[{]")
    assert not auth.refresh()
    assert auth.tokens.find(new)
    path.unlink()
    assert not auth.refresh()
    assert auth.tokens.find(new)
    write(path, old_hash)
    assert auth.refresh()
    assert auth.tokens.find(old)


def test_a_file_that_stays_away_is_complained_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "tokens.json"
    write(path, new_token()[1])
    auth = AuthFile(path)
    for _ in range(2):
        path.unlink()
        for _ in range(3):
            assert not auth.refresh()
        write(path, new_token()[1])
        assert auth.refresh()
    assert len([record for record in caplog.records if "cannot be read" in record.message]) == 2


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o644])
def test_a_file_that_everyone_can_open_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "tokens.json"
    write(path, mode=mode)
    with pytest.raises(ValueError, match="chmod o-rwx"):
        AuthFile(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        AuthFile(tmp_path / "missing")
    tmp_path.chmod(0o700)
    with pytest.raises(ValueError, match="is not a file"):
        AuthFile(tmp_path)
