"""What the store's tests share; `programs` holds most of it, for processes to share too."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest

import embedcache

FOLDER = Path(__file__).parent


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"store_tests_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def programs() -> ModuleType:
    return _load(FOLDER / "programs.py")


@pytest.fixture(scope="session")
def upkeep() -> ModuleType:
    return _load(FOLDER / "maintenance_programs.py")


@pytest.fixture(scope="session")
def golden() -> Path:
    return FOLDER / "golden"


@pytest.fixture(scope="session")
def make_golden() -> ModuleType:
    return _load(FOLDER / "golden" / "make_golden.py")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a command of `programs` as a process; those that still run are killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def start_program(*arguments: object) -> subprocess.Popen[str]:
        package = Path(embedcache.__file__).parents[1]
        process = subprocess.Popen(
            [sys.executable, FOLDER / "programs.py", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(package), "PYTHONFAULTHANDLER": "1"},
        )
        started.append(process)
        return process

    yield start_program
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            assert stream is not None
            with suppress(BrokenPipeError):
                stream.close()


@pytest.fixture
def run(start: Callable[..., subprocess.Popen[str]]) -> Callable[..., str]:
    """Runs a command of `programs` to its end and gives its standard output."""

    def run_program(*arguments: object) -> str:
        process = start(*arguments)
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, f"status {process.returncode}: {errors}"
        return output

    return run_program
