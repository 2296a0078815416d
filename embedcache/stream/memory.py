"""How much memory is there: for choosing between a full and a block shuffle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_OWN_CGROUP = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class _Names:
    """What the files of a control group are called, and the pages of files in its statistics."""

    limit: str
    used: str
    file_pages: str


_V2 = _Names("memory.max", "memory.current", "file")
_V1 = _Names("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache")


def available_bytes() -> int | None:
    """Memory that this process and the page cache may still take; None if nothing says.

    The least of the kernel's ``MemAvailable`` and what is left under the limits of the control
    groups (v2 and v1) that the process is in. Pages of files, which a group can drop, count as
    left.
    """
    found = [_mem_available(), *_left_in_groups()]
    return min((number for number in found if number is not None), default=None)


def _mem_available() -> int | None:
    for line in _lines(_MEMINFO):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _left_in_groups() -> list[int | None]:
    left: list[int | None] = []
    for line in _lines(_OWN_CGROUP):
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        names = _V1 if controllers else _V2
        root = _CGROUPS / "memory" if controllers else _CGROUPS
        group = root / path.lstrip("/")
        # Also those above it, down to the root: any of them may have a limit.
        while group != root.parent and group != group.parent:
            left.append(_left_in_group(group, names))
            group = group.parent
    return left


def _left_in_group(group: Path, names: _Names) -> int | None:
    limit, used = (_number(group / name) for name in (names.limit, names.used))
    if limit is None or used is None:
        return None
    pages = 0
    for line in _lines(group / "memory.stat"):
        word, _, number = line.partition(" ")
        if word == names.file_pages:
            pages = int(number)
    return max(0, limit - max(0, used - pages))


def _number(path: Path) -> int | None:
    """The number in a file; None where there is none, as ``max`` says that nothing is limited."""
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].isdecimal() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
