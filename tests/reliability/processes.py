"""Forked processes that tell what they acknowledged, and how they ended.

Forked and not started anew, as a harness needs thousands; the process that forks has imported
everything and has no other threads. Each harness runs in a process of its own for that.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import select
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TypeVar

from embedcache.errors import EmbedCacheError
from tests.reliability.outcome import Findings

TIMEOUT_S = 120.0
STATUS_ERROR = 1
STATUS_TRACEBACK = 70

_PR_SET_PDEATHSIG = 1
_NUM_PROCESSES = 2
_LONG_S = 4 * 3600.0

T = TypeVar("T")

Tell = Callable[..., None]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child ended.

    Attributes:
        status: Its exit status, or minus the signal that ended it.
        lines: What it told, each line as words. One that a kill has cut is left out.
        errors: What it wrote to standard error.
        is_hung: Whether it had to be killed because it did not end.
    """

    status: int
    lines: list[list[str]]
    errors: str
    is_hung: bool

    def told(self, what: str) -> list[str]:
        """The words after the first, of all lines whose first is this."""
        return [word for first, *words in self.lines if first == what for word in words]

    def check(self, findings: Findings, where: str) -> None:
        """It must have succeeded, or failed with an error of one line."""
        errors = self.errors.strip()
        if self.is_hung:
            findings.add_crashed(where, "did not end")
        elif self.status < 0:
            findings.add_crashed(where, f"ended by signal {-self.status}: {errors[-300:]}")
        elif self.status == STATUS_ERROR:
            if not errors.startswith("error: ") or len(errors.splitlines()) != 1:
                findings.add_wrong(where, f"is no error of one line: {errors[-300:]}")
        elif self.status:
            findings.add_crashed(where, f"status {self.status}: {errors[-600:]}")


class Child:
    """A forked process.

    Args:
        body: What it does; it is given a function that tells words to this process. An error
            of embedcache's ends it with status 1 and the error's line, as the command line
            does; any other with a traceback.
    """

    def __init__(self, body: Callable[[Tell], None]) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - `wait` closes it
        # Not a pipe: harnesses let `write` fail, and what is told must pass all the same.
        self._hearing, telling = socket.socketpair()
        self._told = bytearray()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._hearing.close()
            os.dup2(self._errors.fileno(), 2)
            _run_child(body, telling)
        telling.close()

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def wait_for_word(self) -> None:
        """Wait until it tells something, or ends."""
        self._told += self._receive()

    def wait(self, timeout_s: float = TIMEOUT_S) -> Ended:
        """Wait until it ends, reading what it tells; kill it when that takes too long."""
        is_hung = self._read(timeout_s)
        _, status = os.waitpid(self.pid, 0)
        self._errors.seek(0)
        errors = self._errors.read().decode(errors="replace")
        self._errors.close()
        # A line that a kill has cut has no end.
        lines = [line.split("\t") for line in self._told.decode(errors="replace").split("\n")[:-1]]
        return Ended(os.waitstatus_to_exitcode(status), lines, errors, is_hung)

    def _read(self, timeout_s: float) -> bool:
        """Hear all it tells; whether it had to be killed."""
        is_hung = False
        deadline = time.monotonic() + timeout_s
        while True:
            left_s = max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([self._hearing], [], [], left_s)
            if not ready and not is_hung:
                self.kill()
                deadline, is_hung = deadline + 10, True
                continue
            some = self._receive() if ready else b""
            if not some:
                self._hearing.close()
                return is_hung
            self._told += some

    def _receive(self) -> bytes:
        try:
            return self._hearing.recv(1 << 16)
        except ConnectionResetError:
            return b""


def _run_child(body: Callable[[Tell], None], telling: socket.socket) -> None:
    """Run a body and leave, whatever happens: nothing of the parent's may run in a child."""
    status = STATUS_TRACEBACK
    try:
        # Whatever ends the harness, no child of it goes on.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        faulthandler.enable()
        body(lambda *words: _tell(telling, words))
        status = 0
    except EmbedCacheError as error:
        print(f"error: {error}", file=sys.stderr)
        status = STATUS_ERROR
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _tell(telling: socket.socket, words: tuple[str, ...]) -> None:
    telling.sendall(("\t".join(words) + "\n").encode())


def share(
    points: Sequence[T], attempt: Callable[[Path, T, Findings], None], folder: Path
) -> Findings:
    """Let two processes work through points, each in a folder of its own.

    Args:
        points: What is to be tried.
        attempt: Tries one, in a folder, and adds what it finds.
        folder: For theirs.

    Raises:
        RuntimeError: if the harness itself fails.
    """
    children = []
    for number in range(_NUM_PROCESSES):
        place = folder / str(number)
        place.mkdir()

        def body(tell: Tell, number: int = number, place: Path = place) -> None:
            findings = Findings()
            for point in points[number::_NUM_PROCESSES]:
                attempt(place, point, findings)
            tell("found", json.dumps(asdict(findings)))

        children.append(Child(body))
    total = Findings()
    for child in children:
        ended = child.wait(_LONG_S)
        if ended.status:
            raise RuntimeError(f"status {ended.status}: {ended.errors[-3000:]}")
        total.merge(Findings(**json.loads(ended.told("found")[0])))
    return total


def run_threads_at_once() -> None:
    """Let each new thread of this process do its work in the caller's.

    Calls have one order then, and a number means the same one in each run. Not for threads
    that wait for others.
    """
    threading.Thread.start = threading.Thread.run  # type: ignore[method-assign]
    threading.Thread.join = lambda *_, **__: None  # type: ignore[method-assign]


def program_environment() -> dict[str, str]:
    """The environment of a new process that finds this checkout from any folder."""
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
