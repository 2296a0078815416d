"""One built store for all tests of the service, copied where a file's tests write to theirs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.embedcache.service.serving import ROOT

STORED = tuple(f"a warm and fine film number {number}" for number in range(60))
"""Texts that the built store has."""

LONG_STORED = "film " * 500
"""Another one: a request for many of it has an answer of some 20 MB of JSON."""

KEYS = {
    "reader": "reader-key-0123456789",
    "computer": "computer-key-0123456789",
    "admin": "admin-key-0123456789abc",
}
"""Of `key_file`: name → key."""


@pytest.fixture(scope="session")
def built_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with `STORED` under one view of the module that embedcache brings."""
    folder = tmp_path_factory.mktemp("service")
    corpus = folder / "films.txt"
    corpus.write_text("\n".join([*STORED, LONG_STORED]) + "\n", encoding="utf-8")
    script = "from cli.main import main; main()"
    # A process of its own: TensorFlow, which builds it, is not for the tests' own process.
    subprocess.run(
        [sys.executable, "-c", script, "--store", str(folder / "store"), "build", str(corpus)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
    )
    return folder / "store"


@pytest.fixture(scope="module")
def store_path(built_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the built store for one file's tests."""
    return Path(shutil.copytree(built_store, tmp_path_factory.mktemp("copy") / "store"))


@pytest.fixture(scope="session")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the keys `KEYS`: read; read and compute, as by default; and all three."""
    path = tmp_path_factory.mktemp("keys") / "keys"
    lines = [
        "# who may do what",
        f"{KEYS['reader']} read",
        KEYS["computer"],
        f"{KEYS['admin']} read,compute,admin  # the operator",
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def write_config(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Writes a configuration file: TOML in, its path out."""

    def write(content: str) -> Path:
        path = tmp_path_factory.mktemp("config") / "serve.toml"
        path.write_text(content, encoding="utf-8")
        return path

    return write
