"""How many processors a container may use."""

from pathlib import Path

import pytest

from rpc.cgroups import processor_quota

HYBRID = "4:memory:/jobs/7\n3:cpu,cpuacct:/jobs/7\n0::/jobs/7\n"


def machine(root: Path, groups: str, **files: str) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups, encoding="utf-8", errors="surrogateescape")
    for path, text in files.items():
        file = root / "sys/fs/cgroup" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/a/b\n", {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "800000 100000\n"}, 2),
        ("0::/a/b\n", {"a/cpu.max": "max 100000\n", "a/b/cpu.max": "50000 100000\n"}, 0.5),
        ("0::/the/host's\n", {"cpu.max": "300000 100000\n"}, 3),
        (HYBRID, {"cpu/jobs/7/cpu.cfs_quota_us": "400000", "cpu/jobs/7/cpu.cfs_period_us": "100000"}, 4),
        (HYBRID, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        (HYBRID, {"memory/jobs/7/cpu.cfs_quota_us": "1", "cpu.max": "nonsense"}, None),
        ("0::/in Latin-1: caf\udce9\x1c\n", {"cpu.max": "50000 100000\n"}, 0.5),
        ("", {}, None),
    ],
)
def test_the_smallest_quota_holds(
    tmp_path: Path, groups: str, files: dict[str, str], quota: float | None
) -> None:
    assert processor_quota(machine(tmp_path, groups, **files)) == quota


def test_without_cgroups_there_is_none(tmp_path: Path) -> None:
    assert processor_quota(tmp_path) is None
