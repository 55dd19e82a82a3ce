"""What a container may use of its machine, as Linux keeps it in cgroups of version 1 and 2."""

import os
from contextlib import suppress
from pathlib import Path


def processor_quota(root: Path = Path("/")) -> float | None:
    """Processors' worth of time that this process may take each second; None where nothing limits it.

    Each group that it is in has a limit of its own, the outermost too. In a container the path that the
    kernel names may be the host's, which is not there; the mount itself is the container's group then.
    """
    quotas: list[float] = []
    try:
        # A group is a folder, and may be called anything.
        groups = os.fsdecode((root / "proc/self/cgroup").read_bytes()).split("\n")
    except OSError:
        return None
    for group in filter(None, groups):
        _, controllers, path = group.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        innermost = mount / path.lstrip("/")
        for folder in (innermost, *innermost.parents):
            if not folder.is_relative_to(mount):
                break
            quotas += _quota_of_version_1(folder) if controllers else _quota_of_version_2(folder)
    return min(quotas, default=None)


def _quota_of_version_2(folder: Path) -> list[float]:
    """From "200000 100000", microseconds in a period; "max ..." says that there is no limit."""
    with suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        return [int(quota) / int(period)]
    return []


def _quota_of_version_1(folder: Path) -> list[float]:
    """-1 says that there is no limit."""
    with suppress(OSError, ValueError):
        quota = int((folder / "cpu.cfs_quota_us").read_text(encoding="ascii"))
        period = int((folder / "cpu.cfs_period_us").read_text(encoding="ascii"))
        return [quota / period] if quota > 0 else []
    return []
