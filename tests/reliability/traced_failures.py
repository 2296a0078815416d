"""Every write-path system call fails once, or ends the process: SQLite's own calls too.

``strace`` is attached to a child just before it begins, so that the calls it counts are those
of the workload alone. Where it is not installed, or may not trace, this is left out.
"""

from __future__ import annotations

import ctypes
import itertools
import re
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.reliability.bugs import seed_bug
from tests.reliability.call_failures import draw_evenly
from tests.reliability.outcome import Findings, Outcome
from tests.reliability.processes import Child, Ended, Tell, run_threads_at_once, share
from tests.reliability.scenarios import SCENARIOS, Scenario

TITLE = "every system call fails once, or is the last one"
SHORT = {"num_points": 18}
FULL = {"num_points": 0}

CALLS = (
    "openat", "mkdir", "write", "writev", "pwrite64", "pwritev", "fsync", "fdatasync", "rename",
    "renameat2", "link", "unlink", "unlinkat", "rmdir", "ftruncate", "fallocate", "close",
)  # fmt: skip
SPACE_CALLS = (
    "mkdir", "write", "writev", "pwrite64", "pwritev", "fsync", "fdatasync", "rename",
    "renameat2", "link", "fallocate",
)  # fmt: skip
KILL = "signal=SIGKILL"
NO_SPACE = "error=ENOSPC"
EFFECTS = ("error=EIO", NO_SPACE, KILL)
_PR_SET_PTRACER = 0x59616D61
_ANY_PROCESS = ctypes.c_ulong(-1)
_ATTACH_TIMEOUT_S = 20.0


def run(folder: Path, *, num_points: int, seed: int, bug: str = "") -> Outcome:
    """Let one system call after the other fail, or be the last one.

    Args:
        folder: For the stores.
        num_points: How many, drawn from all; 0: every one.
        seed: Of the draw.
        bug: A seeded one.
    """
    reason = _why_not(folder)
    if reason:
        return Outcome(done="", skipped=reason)
    points = _points(folder)
    if num_points:
        points = draw_evenly(points, num_points, seed=seed)

    def attempt(place: Path, point: Point, findings: Findings) -> None:
        scenario, effect, call, number = point
        where = f"{scenario.name}, {effect} at {call} {number}"
        ended = _attempt(place, scenario, f"{call}:{effect}:when={number}", bug=bug)
        if not (effect == KILL and ended.status == -signal.SIGKILL):
            ended.check(findings, where)
        scenario.check(place / "store", ended.lines, findings, where)

    findings = share([*itertools.chain(*points.values())], attempt, folder)
    count = sum(map(len, points.values()))
    done = (
        f"{count:,} system calls, SQLite's among them, one a run of writing or maintaining:"
        " EIO, ENOSPC or `kill -9`"
    )
    return Outcome(done=done, findings=findings)


Point = tuple[Scenario, str, str, int]
"""Program, effect, call and its number."""


def _points(folder: Path) -> dict[str, list[Point]]:
    """Every failure there can be, by effect and call; counted by a run in which none fails."""
    points: dict[str, list[Point]] = {}
    for scenario in SCENARIOS:
        _attempt(folder, scenario, "")
        log = (folder / "trace").read_text(errors="replace")
        counts = Counter(re.findall(r"^\d+ +(\w+)\(", log, flags=re.MULTILINE))
        for effect, call in itertools.product(EFFECTS, CALLS):
            if effect == NO_SPACE and call not in SPACE_CALLS:
                continue
            numbers = range(1, counts[call] + 1)
            some = points.setdefault(f"{effect} {call}", [])
            some += [(scenario, effect, call, number) for number in numbers]
    return points


def _attempt(folder: Path, scenario: Scenario, injection: str, *, bug: str = "") -> Ended:
    """A child that runs while strace lets one call fail; ``trace`` is what strace saw."""
    path = folder / "store"
    scenario.begin(path, folder / scenario.name)

    def body(tell: Tell) -> None:
        seed_bug(bug)
        run_threads_at_once()
        scenario.act(path, tell, bug)

    return _run_traced(body, injection, folder / "trace")


def _run_traced(body: Callable[[Tell], None], injection: str, log: Path) -> Ended:
    """A child under strace from the moment at which its body begins."""
    mine, its = socket.socketpair()

    def wait_and_run(tell: Tell) -> None:
        # Where a process may be traced by its own parents only: by any.
        ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _ANY_PROCESS)
        its.send(b"may be traced")
        its.recv(1)
        body(tell)

    log.unlink(missing_ok=True)
    child = Child(wait_and_run)
    mine.recv(100)
    words = ["strace", "-f", "-qq", "-o", log, "-e", f"trace={','.join(CALLS)}"]
    if injection:
        words += ["-e", f"inject={injection}"]
    tracer = subprocess.Popen([*words, "-p", str(child.pid)], stderr=subprocess.PIPE)
    _wait_until_traced(child.pid, tracer)
    mine.send(b"!")
    ended = child.wait()
    mine.close()
    its.close()
    tracer.communicate()
    return ended


def _wait_until_traced(pid: int, tracer: subprocess.Popen[bytes]) -> None:
    status = Path(f"/proc/{pid}/status")
    deadline = time.monotonic() + _ATTACH_TIMEOUT_S
    while "TracerPid:\t0\n" in status.read_text(encoding="ascii"):
        if tracer.poll() is not None or time.monotonic() > deadline:
            return
        time.sleep(0.001)


def _why_not(folder: Path) -> str:
    """Why system calls cannot be made to fail here; empty if they can."""
    if shutil.which("strace") is None:
        return "strace is not installed"

    def make_folder(_tell: Tell) -> None:
        (folder / "probe").mkdir()

    ended = _run_traced(make_folder, "mkdir:error=EXDEV", folder / "trace")
    if ended.status == 0 or ("EXDEV" not in ended.errors and "cross-device" not in ended.errors):
        return "strace may not trace a process here, or cannot make its calls fail"
    return ""
