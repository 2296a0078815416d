"""The servers of B12, each a process of its own on the loopback."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from benchmarks.child import child_environment

_START_S = 120.0
_END_S = 60.0


class Peer:
    """A server of `benchmarks.service_peers`. A context manager.

    Args:
        arguments: Which one, and what it serves.

    Attributes:
        port: Where it listens.
    """

    def __init__(self, *arguments: str | Path) -> None:
        self._arguments = arguments
        self.port = 0

    def __enter__(self) -> Peer:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.service_peers", *map(str, self._arguments)],
            env=child_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._arguments[0]}: the server ended before it listened")
        self.port = int(line)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate(timeout=_END_S)


class Service:
    """The service, with B12's constant. A context manager; the end of it drains.

    Args:
        store_path: What it serves.
        folder: For its configuration and its log, which goes to a file, as under a supervisor.
        settings: Of `embedcache.service.settings.ServiceSettings`, as TOML has them.
        limits: Of its limits, likewise.

    Attributes:
        port: Where it listens.
    """

    def __init__(
        self, store_path: Path, folder: Path, *, settings: Mapping[str, str], limits: str
    ) -> None:
        self._store_path = store_path
        self._config = folder / "service.toml"
        self._log = folder / "service.log"
        lines = [f"{name} = {value}\n" for name, value in settings.items()]
        folder.mkdir(parents=True, exist_ok=True)
        self._config.write_text(
            "port = 0\n" + "".join(lines) + f"[limits]\n{limits}", encoding="utf-8"
        )
        self.port = 0

    def __enter__(self) -> Service:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "benchmarks.service_server"),
                    *(str(self._store_path), str(self._config)),
                ],
                env=child_environment(),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )
        try:
            self.port = self._await_port()
        except BaseException:
            self._process.kill()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            # Not `communicate`, which would close its input first, and so end it at once.
            status = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise
        finally:
            assert self._process.stdin is not None
            self._process.stdin.close()
        if status and error is None:
            raise RuntimeError(f"the service ended with {status}: {self._log_tail()}")

    def total(self, metric: str) -> float:
        """The sum of a metric over its labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as answer:
            text = answer.read().decode()
        return sum(
            float(found[1]) for found in re.finditer(rf"(?m)^{metric}(?:\{{.*\}})? (\S+)$", text)
        )

    def has_tensorflow(self) -> bool:
        """Whether its process, or a child of it, has TensorFlow's libraries in memory."""
        import psutil

        process = psutil.Process(self._process.pid)
        return any(
            "tensorflow" in Path(f"/proc/{each.pid}/maps").read_text(encoding="utf-8")
            for each in [process, *process.children(recursive=True)]
        )

    def _await_port(self) -> int:
        until = time.monotonic() + _START_S
        while time.monotonic() < until and self._process.poll() is None:
            said = self._log.read_text(encoding="utf-8")
            if found := re.search(r"(?m)^listening on http://\S+:(\d+)$", said):
                return int(found[1])
            time.sleep(0.02)
        raise RuntimeError(f"the service does not listen: {self._log_tail()}")

    def _log_tail(self) -> str:
        return self._log.read_text(encoding="utf-8")[-2000:]
