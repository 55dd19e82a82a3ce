"""Where Triton's own folder cannot be written to, another one is found, and told once."""

import logging
from pathlib import Path

import pytest
from triton import knobs

from executor.rehearsal.kept import keep_what_is_compiled


def test_a_folder_that_can_be_written_to_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "new"))
    keep_what_is_compiled()
    assert knobs.cache.dir == str(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_without_one_there_is_a_substitute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.WARNING):
        keep_what_is_compiled()
        keep_what_is_compiled()
    assert len(caplog.records) == 1
    assert "TRITON_CACHE_DIR" in caplog.text
    folder = Path(knobs.cache.dir)
    (folder / "kernel").write_text("")
    assert folder.is_dir()
    assert tmp_path not in folder.parents
