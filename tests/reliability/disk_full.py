"""A full disk at any moment: an error of one line, and what was acknowledged stays.

Two ways: no file may be longer than so many bytes (``RLIMIT_FSIZE``); and a real file system
in memory that has so many bytes left, where this user may mount one.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

from tests.reliability.bugs import seed_bug
from tests.reliability.history import WIDE_VIEW
from tests.reliability.outcome import Findings, Outcome
from tests.reliability.processes import (
    STATUS_ERROR,
    Child,
    Ended,
    Tell,
    program_environment,
)
from tests.reliability.scenarios import Scenario, writing

TITLE = "full disk"
SHORT = {"num_sizes": 6}
FULL = {"num_sizes": 100}

_SCENARIOS = (
    writing("new store", WIDE_VIEW, old=False),
    writing("old store", WIDE_VIEW, old=True),
)
_LONGEST_FILE = 160_000
"""More than any file of theirs, the catalog with its journal among them."""
_MOST_LEFT = 400_000
_MOUNTED_BYTES = 4 << 20


def run(folder: Path, *, num_sizes: int, seed: int, bug: str = "") -> Outcome:
    """Run a program with so many bytes left, from none to enough.

    Args:
        folder: For the stores.
        num_sizes: How many sizes, evenly, of each of the two kinds.
        seed: Not used: the sizes are even.
        bug: A seeded one.
    """
    findings, num_full = _sweep_limits(folder, num_sizes, bug=bug)
    mounted, skipped = _sweep_mounted(folder, num_sizes, bug=bug)
    if mounted is not None:
        findings.merge(mounted[0])
    done = f"{num_sizes} longest files by `RLIMIT_FSIZE` ({num_full} too short)"
    if mounted is not None:
        done += f", {num_sizes} sizes of a real full file system ({mounted[1]} too small)"
    return Outcome(done=done, findings=findings, skipped=skipped)


def _sweep_limits(folder: Path, num_sizes: int, *, bug: str) -> tuple[Findings, int]:
    """Findings, and how many sizes were too small."""
    findings, num_full = Findings(), 0
    path = folder / "store"
    for number, size in enumerate(np.linspace(0, _LONGEST_FILE, num_sizes).astype(int).tolist()):
        scenario = _SCENARIOS[number % 2]
        scenario.begin(path, folder / scenario.name)

        def body(tell: Tell, size: int = size, scenario: Scenario = scenario) -> None:
            seed_bug(bug)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            try:
                scenario.act(path, tell, bug)
            finally:
                # Its standard error is a file too.
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)

        where = f"files of {size:,} bytes at most"
        ended = Child(body).wait()
        _check_told(ended, findings, where)
        num_full += ended.status == STATUS_ERROR
        scenario.check(path, ended.lines, findings, where)
    return findings, num_full


def _check_told(ended: Ended, findings: Findings, where: str) -> None:
    ended.check(findings, where)
    if ended.status == STATUS_ERROR and "no space left" not in ended.errors:
        findings.add_wrong(where, f"is not told as a full disk: {ended.errors.strip()[-300:]}")


def _sweep_mounted(
    folder: Path, num_sizes: int, *, bug: str
) -> tuple[tuple[Findings, int] | None, str]:
    """The same on a mounted file system, in a process that may mount one; or why not."""
    mounted = folder / "mounted"
    mounted.mkdir()
    if shutil.which("unshare") is None:
        return None, "the real file system: unshare is not installed"
    mount = f"mount -t tmpfs -o size={_MOUNTED_BYTES} tmpfs {mounted} || exit 77"
    program = [sys.executable, "-m", "tests.reliability.disk_full", str(mounted)]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f'{mount}; exec "$@"', "sh", *program, str(num_sizes), bug],
        env=program_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode in (1, 77) and "Traceback" not in done.stderr:
        return None, "the real file system: this user may not mount one here"
    if done.returncode:
        raise RuntimeError(f"the sweep of a mounted file system failed:\n{done.stderr[-2000:]}")
    record = json.loads(done.stdout)
    return (Findings(**record["findings"]), record["num_full"]), ""


def _fill_and_write(mounted: Path, num_sizes: int, bug: str) -> tuple[Findings, int]:
    """Leave so many bytes of a file system, run a program, free it again and go on."""
    findings, num_full = Findings(), 0
    ballast, path = mounted / "ballast", mounted / "store"
    scenario = _SCENARIOS[1]
    for left in np.linspace(0, _MOST_LEFT, num_sizes).astype(int).tolist():
        scenario.begin(path, mounted / scenario.name)
        free = os.statvfs(mounted).f_bavail * os.statvfs(mounted).f_bsize
        with ballast.open("wb") as file:
            file.write(bytes(max(0, free - left)))

        def body(tell: Tell) -> None:
            seed_bug(bug)
            scenario.act(path, tell, bug)

        where = f"{left:,} bytes left"
        ended = Child(body).wait()
        _check_told(ended, findings, where)
        num_full += ended.status == STATUS_ERROR
        ballast.unlink()
        scenario.check(path, ended.lines, findings, where)
    return findings, num_full


if __name__ == "__main__":
    found, num_too_small = _fill_and_write(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    print(json.dumps({"findings": asdict(found), "num_full": num_too_small}))
