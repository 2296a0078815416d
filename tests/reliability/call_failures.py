"""Every write-path call of Python's fails once, or is the last one: nothing is lost.

``os`` is wrapped in a child, so this works everywhere; what SQLite and buffered files do by
themselves is the business of `traced_failures`.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tests.reliability.bugs import seed_bug
from tests.reliability.outcome import Findings, Outcome
from tests.reliability.processes import Child, Ended, Tell, run_threads_at_once, share
from tests.reliability.scenarios import SCENARIOS, Scenario

TITLE = "every call of `os` fails once, or is the last one"
SHORT = {"num_points": 18}
FULL = {"num_points": 0}

WRITES = ("write", "pwrite", "writev", "pwritev", "sendfile", "copy_file_range")
CALLS = (
    *WRITES, "open", "fsync", "fdatasync", "replace", "rename", "link", "symlink", "mkdir", "close",
    "unlink", "remove", "rmdir", "ftruncate", "truncate", "posix_fallocate", "chmod", "fchmod",
)  # fmt: skip
SHORT_WRITE = "short write"
_ERRORS = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC}
KILL = "kill -9"
EFFECTS = (*_ERRORS, SHORT_WRITE, KILL)
T = TypeVar("T")


def run(folder: Path, *, num_points: int, seed: int, bug: str = "") -> Outcome:
    """Fail one call after the other of a program that writes, with every effect.

    Args:
        folder: For the stores.
        num_points: How many failures, drawn from all; 0: every one.
        seed: Of the draw.
        bug: A seeded one.
    """
    points = _points(folder)
    if num_points:
        points = draw_evenly(points, num_points, seed=seed)

    def attempt(place: Path, point: Point, findings: Findings) -> None:
        scenario, effect, number = point
        where = f"{scenario.name}, {effect} at call {number}"
        ended, failed = _attempt(place, scenario, effect, number, bug=bug)
        if not (effect == KILL and ended.status == -signal.SIGKILL):
            ended.check(findings, f"{where} ({failed})")
        if effect == SHORT_WRITE and ended.status:
            findings.add_wrong(where, f"a short write was not survived: {ended.errors[-300:]}")
        scenario.check(place / "store", ended.lines, findings, where)

    findings = share([*itertools.chain(*points.values())], attempt, folder)
    count = sum(map(len, points.values()))
    done = (
        f"{count:,} calls, one a run of writing or maintaining: EIO, ENOSPC, short writes from it"
        " on, or `kill -9`"
    )
    return Outcome(done=done, findings=findings)


Point = tuple[Scenario, str, int]
"""Program, effect and number of a call."""


def _points(folder: Path) -> dict[str, list[Point]]:
    """Every failure there can be, by effect; counted by a run in which none fails."""
    points: dict[str, list[Point]] = {}
    for scenario, effect in itertools.product(SCENARIOS, EFFECTS):
        ended, _ = _attempt(folder, scenario, effect, 0)
        count = len(ended.told("call"))
        some = points.setdefault(effect, [])
        some += [(scenario, effect, number) for number in range(1, count + 1)]
    return points


def draw_evenly(points: dict[str, list[T]], num_points: int, *, seed: int) -> dict[str, list[T]]:
    """So many of the points, of each name about equally many, so that none is left out."""
    rng = random.Random(seed)
    names = rng.sample(sorted(points), len(points))
    shuffled = {name: rng.sample(points[name], len(points[name])) for name in names}
    in_turns = itertools.zip_longest(
        *([(name, one) for one in shuffled[name]] for name in shuffled)
    )
    drawn: dict[str, list[T]] = {name: [] for name in shuffled}
    for name, one in itertools.islice(filter(None, itertools.chain(*in_turns)), num_points):
        drawn[name].append(one)
    return drawn


def _attempt(
    folder: Path, scenario: Scenario, effect: str, number: int, *, bug: str = ""
) -> tuple[Ended, str]:
    """A child that runs a program while one call fails; and the call that did."""
    path = folder / "store"
    scenario.begin(path, folder / scenario.name)

    def body(tell: Tell) -> None:
        fail_call(number, effect, tell)
        seed_bug(bug)
        run_threads_at_once()
        scenario.act(path, tell, bug)

    ended = Child(body).wait()
    return ended, " ".join(ended.told("failed")) or "none failed"


def fail_call(number: int, effect: str, tell: Tell) -> None:
    """Let one call fail, or each write from one on take half of what it is given.

    Args:
        number: From 1; 0: none, and each is told as ``call NAME``.
        effect: One of `EFFECTS`. For a short write, writes alone are counted.
        tell: Told ``failed NAME``.
    """
    numbers = itertools.count(1)

    def failing(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            count = next(numbers)
            if number == 0:
                tell("call", name)
            is_short = effect == SHORT_WRITE and 0 < number <= count
            if not is_short and (effect == SHORT_WRITE or count != number):
                return real(*arguments, **named)
            tell("failed", name, *map(str, arguments[:1]))
            if is_short:
                return _write_half(name, real, arguments)
            if effect == KILL:
                os.kill(os.getpid(), signal.SIGKILL)
            if name == "close":
                real(*arguments)  # Linux closes the file all the same
            raise OSError(_ERRORS[effect], os.strerror(_ERRORS[effect]))

        return call

    for name in WRITES if effect == SHORT_WRITE else CALLS:
        if hasattr(os, name):
            setattr(os, name, failing(name, getattr(os, name)))


def _write_half(name: str, real: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    if name in ("write", "pwrite"):
        descriptor, given, *offset = arguments
        view = memoryview(given).cast("B")
        return real(descriptor, view[: max(1, len(view) // 2)], *offset)
    if name in ("writev", "pwritev"):
        descriptor, parts, *offset = arguments
        first = memoryview(parts[0]).cast("B")
        return real(descriptor, [first[: max(1, len(first) // 2)]], *offset)
    # The number of bytes is the last argument of those that are left, or the fourth.
    place = 3 if name == "sendfile" else 2
    count = arguments[place]
    return real(*arguments[:place], max(1, count // 2), *arguments[place + 1 :])
