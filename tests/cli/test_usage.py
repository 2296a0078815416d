"""Exit statuses: usage 2, unexpected errors 1, interruptions 130; never a traceback."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import cli.stats
import embedcache
from cli.main import run

CommandLine = Any
Processes = Any
Built = Any


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nope",), "No such command 'nope'"),
        (("--nope",), "No such option"),
        (("build",), "Missing argument"),
        (("build", "a.txt", "--nope"), "No such option"),
        (("build", "a.txt", "--dtype", "int4"), "'int4' is not one of 'float16', 'float32'"),
        (("build", "a.txt", "--max-tokens", "0"), "0 is not in the range x>=1"),
        (("build", "a.txt", "--max-tokens", "many"), "'many' is not a valid integer"),
        (("build", "a.txt", "--module"), "requires an argument"),
        (("build", "a.txt", "--max-text-bytes", "3000000000"), "is not in the range"),
        (("train", "--kernel-sizes", "3,x"), "--kernel-sizes"),
        (("train", "--kernel-sizes", ""), "--kernel-sizes"),
        (("train", "--kernel-sizes", "3,0"), "kernel_sizes"),
        (("train", "--lr", "0"), "0.0 is not in the range"),
        (("train", "--lr", "nan"), "learning_rate must be"),
        (("train", "--lr", "inf"), "learning_rate must be"),
        (("train", "--dropout", "1"), "1.0 is not in the range"),
        (("train", "--dropout", "nan"), "dropout must be"),
        (("train", "--folds", "1"), "1 is not in the range"),
        (("train", "--seed", "-1"), "-1 is not in the range"),
        (("train", "a", "b"), "unexpected extra argument"),
        (("get",), "Missing argument 'TEXT'"),
        (("predict",), "Missing argument 'RUN'"),
        (("runs", "nope"), "No such command 'nope'"),
        (("runs", "show"), "Missing argument"),
        (("verify", "--fix=yes"), "does not take a value"),
    ],
    ids=str,
)
def test_wrong_usage_is_told_once_with_status_2(
    ec: CommandLine, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    done = ec(tmp_path / "store", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[0].startswith(("Usage: embedcache", "Error: "))
    assert done.stderr.count("Error: ") == 1
    assert said in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("arguments", [[], ["runs"], ["datasets"], ["views"]], ids=str)
def test_group_without_a_command_shows_its_help(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    # Up to click 8.1 that is no wrong usage.
    assert run(arguments) in (0, 2)
    said = capsys.readouterr()
    assert "Commands:" in said.out + said.err


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command with a bug."""

    def raise_error(_context: object) -> None:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(cli.stats, "open_user_store", raise_error)


@pytest.mark.usefixtures("broken")
def test_unexpected_exception_is_one_line(ec: CommandLine, tmp_path: Path) -> None:
    done = ec(tmp_path, "stats")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: unexpected RuntimeError: first line second line; ")
    assert "EMBEDCACHE_TRACEBACK=1" in line


@pytest.mark.usefixtures("broken")
def test_unexpected_exception_is_raised_for_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDCACHE_TRACEBACK", "1")
    with pytest.raises(RuntimeError, match="first line"):
        run(["stats"])


def test_traceback_is_shown_to_who_asks_and_to_nobody_else(process: Processes) -> None:
    code = "import cli.stats, cli.main\ncli.stats.open_user_store = None\ncli.main.main()"
    program = (sys.executable, "-c", code)
    plain = process("stats", program=program)
    asked = process("stats", program=program, EMBEDCACHE_TRACEBACK="1")
    assert (plain.returncode, asked.returncode) == (1, 1)
    assert plain.stderr.startswith("error: unexpected TypeError")
    assert len(plain.stderr.splitlines()) == 1
    assert asked.stderr.startswith("Traceback")


def test_an_error_is_one_line_whatever_the_names_in_it(ec: CommandLine, tmp_path: Path) -> None:
    line = ec.error(tmp_path / "two\nlines\u2028three", "stats")
    assert "no embedcache store there" in line


def test_interruption_has_its_own_status(
    ec: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_context: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.stats, "open_user_store", interrupt)
    done = ec(tmp_path, "stats")
    assert (done.returncode, done.stdout) == (130, "")
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("interrupted: ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_build_ends_with_130_and_registers_nothing(
    process: Processes, ec: CommandLine, built: Built, copied: Path, number: signal.Signals
) -> None:
    before = ec.json(copied, "datasets", "list")
    started = process.start("--store", copied, "build", "-")
    assert started.stdin is not None
    with started:
        # More than a pipe holds: when it is written the build is reading.
        started.stdin.write((built.texts[0] + "\n").encode() * 5_000)
        started.stdin.flush()
        started.send_signal(number)
        status = started.wait(timeout=60)
        assert started.stderr is not None
        said = started.stderr.read().decode()
    assert status == 130
    assert said.strip().startswith("interrupted: ")
    assert "Traceback" not in said
    assert ec.json(copied, "datasets", "list") == before
    assert ec.json(copied, "verify")["orphans"] == []


@pytest.mark.parametrize("command", [("--help",), ("stats", "--json"), ("get",), ("verify",)])
def test_reader_that_goes_away_gets_no_traceback(
    process: Processes, built: Built, command: tuple[str, ...]
) -> None:
    words = [*command, built.texts[0]] if command == ("get",) else command
    started = process.start("--store", built.store, *words)
    assert started.stdout is not None
    assert started.stderr is not None
    started.stdout.close()
    with started:
        assert started.stderr.read() == b""
    assert started.returncode in (0, 1)


def test_version_is_told(process: Processes) -> None:
    done = process("--version")
    assert done.stdout == f"embedcache, version {embedcache.__version__}\n"


@pytest.fixture
def program() -> str:
    """The installed console script."""
    path = Path(sys.executable).with_name("embedcache")
    if not path.is_file() or not path.stat().st_mode & stat.S_IXUSR:
        pytest.skip(f"{path} is not there: the project is not installed")
    return str(path)


def test_installed_command_does_not_import_what_lies_in_the_current_folder(
    program: str, built: Built, tmp_path: Path
) -> None:
    for name in ("cnn.py", "embedcache.py", "cli/__init__.py", "cli/main.py", "click.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"raise ImportError({name!r} + ' of the current folder')\n")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, "--store", str(built.store), *arguments],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    for command in (("stats",), ("runs", "show", "last")):
        done = call(*command, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout)
    # As far as it goes without Keras, which takes long to load.
    assert call("train", "nope").stderr == "error: no dataset 'nope'; there are: helpdesk\n"
