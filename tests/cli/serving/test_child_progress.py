import pytest

from cli.serving.child_progress import parse_progress, print_progress


def test_what_is_printed_is_understood(capsys: pytest.CaptureFixture[str]) -> None:
    progress = print_progress()
    progress(0, 10)
    progress(10, 10)
    assert [parse_progress(line) for line in capsys.readouterr().out.splitlines()] == [(0, 10), (10, 10)]


def test_lines_come_now_and_then_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    progress = print_progress()
    for done in range(10_001):
        progress(done, 10_000)
    lines = [parse_progress(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == (0, 10_000)
    assert lines[-1] == (10_000, 10_000)
    assert len(lines) < 1000


@pytest.mark.parametrize(
    "line", ["", "@progress", "@progress 1", "@progress 1 two", "@progress 1 ²", "loading @progress 1 2"]
)
def test_other_lines_are_none_of_ours(line: str) -> None:
    assert parse_progress(line) is None
