"""The command line in this process and in its own, and one built store that tests copy."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cli.main import run

ROOT = Path(__file__).resolve().parents[2]
NUM_TEXTS = 120
PROGRAM = (sys.executable, "-c", "from cli.main import main; main()")

# As it is before TensorFlow and Keras are told, in this process, to keep quiet: commands in
# processes of their own have to see to that themselves.
_ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("EMBEDCACHE_", "TF_CPP_", "PYTHONPATH"))
}

Done = subprocess.CompletedProcess[str]


class CommandLine:
    """Runs commands in this process, on a store each."""

    def __call__(self, store: Path, *arguments: str | Path, stdin: bytes = b"") -> Done:
        """Run a command; its output is UTF-8 as on a real terminal."""
        words = ["--store", str(store), *map(str, arguments)]
        out = io.TextIOWrapper(io.BytesIO(), "utf-8", newline="")
        err = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace", newline="")
        before, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(stdin), "utf-8")
        try:
            with warnings.catch_warnings(), redirect_stdout(out), redirect_stderr(err):
                # Keras's Variable has no ``copy`` in its ``__array__``; NumPy 2 warns
                # whenever one is saved.
                warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
                status = run(words)
        finally:
            sys.stdin = before
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read())
        return Done(words, status, *texts)

    def ok(self, store: Path, *arguments: str | Path, stdin: bytes = b"") -> str:
        """What a command that has to succeed prints."""
        done = self(store, *arguments, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def json(self, store: Path, *arguments: str | Path, stdin: bytes = b"") -> dict[str, Any]:
        """The one JSON object that a command prints with ``--json``, and nothing else."""
        record = json.loads(self.ok(store, *arguments, "--json", stdin=stdin))
        assert isinstance(record, dict)
        return record

    def error(self, store: Path, *arguments: str | Path, stdin: bytes = b"") -> str:
        """The one line that a command which has to fail prints."""
        done = self(store, *arguments, stdin=stdin)
        return require_error(done)


def require_error(done: Done) -> str:
    """The error's line, once it is known that there is nothing else."""
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert done.stdout == ""
    assert done.stderr.endswith("\n")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "unexpected" not in line
    return line


class Processes:
    """Runs commands as processes of their own."""

    def environment(self, **extra: str) -> dict[str, str]:
        """This session's environment, from before it was changed; imports find the packages."""
        return {**_ENVIRONMENT, "PYTHONPATH": str(ROOT), **extra}

    def __call__(
        self,
        *arguments: str | Path,
        stdin: bytes = b"",
        prefix: Sequence[str] = (),
        program: Sequence[str] = PROGRAM,
        cwd: Path | None = None,
        **extra: str,
    ) -> Done:
        """Run a command line to its end."""
        done = subprocess.run(
            [*prefix, *program, *map(str, arguments)],
            input=stdin, capture_output=True, check=False, timeout=120,
            cwd=cwd, env=self.environment(**extra),
        )  # fmt: skip
        return Done(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    def start(self, *arguments: str | Path) -> subprocess.Popen[bytes]:
        """Start a command with pipes to its three streams."""
        return subprocess.Popen(
            [*PROGRAM, *map(str, arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=self.environment(),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Built:
    """A store with one dataset, ``helpdesk``, and one run; tests copy it to change it.

    Attributes:
        store: Its folder.
        corpus: The file that was built.
        texts: The texts in it, all in the store.
        labels: Their labels.
        build: What ``build --json`` printed.
        train: What ``train --json`` printed.
    """

    store: Path
    corpus: Path
    texts: list[str]
    labels: list[str]
    build: dict[str, Any]
    train: dict[str, Any]

    def copy(self, target: Path) -> Path:
        """A copy of the store."""
        shutil.copytree(self.store, target)
        return target


@pytest.fixture(scope="session")
def ec() -> CommandLine:
    """Runs commands in this process."""
    return CommandLine()


@pytest.fixture(scope="session")
def process() -> Processes:
    """Runs commands as processes of their own."""
    return Processes()


@pytest.fixture(scope="session")
def built(ec: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("cli")
    store, corpus = folder / "store", folder / "helpdesk.txt"
    lines = (ROOT / "examples" / "helpdesk.txt").read_text(encoding="utf-8").splitlines()
    corpus.write_text("\n".join(lines[:NUM_TEXTS]) + "\n", encoding="utf-8")
    pairs = [line.removeprefix("__label__").split(" ", 1) for line in lines[:NUM_TEXTS]]
    build = ec.json(store, "build", corpus)
    train = ec.json(store, "train", "--preset", "basic", "--epochs", "2")
    return Built(
        store, corpus, [text for _, text in pairs], [label for label, _ in pairs], build, train
    )


@pytest.fixture
def copied(built: Built, tmp_path: Path) -> Path:
    """A store of the test's own, with what `built` has."""
    return built.copy(tmp_path / "store")


@pytest.fixture(scope="session")
def tiny_module(make_module: Any) -> str:
    """The handle of a module that loads fast."""
    return str(make_module())


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EMBEDCACHE_STORE", "EMBEDCACHE_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)
