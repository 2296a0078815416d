"""What is wrong with a store is told in one line, and `verify --fix` mends what it can."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import embedcache
from embedcache.store.database.catalog import Catalog

CommandLine = Any
Processes = Any
Built = Any

READERS = (
    ("stats",), ("verify",), ("get", "text"), ("train",), ("predict", "last", "text"),
    ("runs", "list"), ("datasets", "list"), ("views", "list"),
)  # fmt: skip
BASIC = ("--preset", "basic", "--epochs", "1")


def _shard(store: Path) -> Path:
    (path,) = (store / "shards").rglob("*.h5")
    return path


def _flip_bit(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def _places_of_values(store: Path, view: str, text: str) -> int:
    """Where in the shard's file the numbers of a text's first token lie."""
    with embedcache.open_store(store, create=False) as opened:
        (matrix,) = opened.get(view, [text])
    place = _shard(store).read_bytes().find(matrix[0].tobytes())
    assert place > 0
    return place


@pytest.mark.parametrize("command", [*READERS, ("build", "a.txt"), ("build", "a.txt", "--dry-run")])
def test_what_is_no_store_is_refused_and_left_alone(
    ec: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("one\n", encoding="utf-8")
    Path("foreign").mkdir()
    Path("foreign/notes").write_text("mine\n", encoding="utf-8")
    assert str(tmp_path / "foreign") in ec.error(Path("foreign"), *command)
    assert [path.name for path in Path("foreign").iterdir()] == ["notes"]
    for file in ("a.txt", "a.txt/below"):
        assert str(tmp_path / file) in ec.error(Path(file), *command)
    assert Path("a.txt").read_text(encoding="utf-8") == "one\n"
    if command[0] != "build":
        assert "`embedcache build CORPUS`" in ec.error(Path("nothing"), *command)
    assert not Path("nothing").exists()


@pytest.mark.parametrize("command", [*READERS, ("build", "a.txt"), ("build", "a.txt", "--dry-run")])
def test_newer_store_is_refused(
    ec: CommandLine, copied: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.chdir(copied.parent)
    Path("a.txt").write_text("one\n", encoding="utf-8")
    marker = copied / "embedcache.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"version": 99}))
    line = ec.error(copied, *command)
    assert "store version 99" in line
    assert "upgrade embedcache" in line


def _forces_permissions(prefix: Sequence[str], folder: Path) -> bool:
    """Whether a process started so runs this Python, and cannot write where no mode lets it."""
    code = f"import cli.main, os; print(os.access({str(folder)!r}, os.W_OK))"
    try:
        done = subprocess.run(
            [*prefix, sys.executable, "-c", code], capture_output=True, text=True, check=False,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        )  # fmt: skip
    except OSError:
        return False
    return done.stdout.strip() == "False"


@pytest.fixture
def read_only(copied: Path) -> Iterator[Sequence[str]]:
    """What to start a command with so that it can read the copied store, and not write it."""
    powers = "-dac_override,-dac_read_search,-fowner"
    nobody = "--reuid=65534", "--regid=65534", "--clear-groups"
    for path in (copied, *copied.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    ways: list[tuple[str, ...]] = [()]
    if os.geteuid() == 0:
        ways = [
            ("setpriv", f"--bounding-set={powers}", f"--inh-caps={powers}"),
            ("setpriv", *nobody),
        ]
    usable = next((way for way in ways if _forces_permissions(way, copied)), None)
    if usable is None:
        pytest.skip("this user may write everywhere, and setpriv cannot take that away")
    yield usable
    for path in (copied, *copied.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)


def test_read_only_store_can_be_read_and_not_written(
    process: Processes, built: Built, copied: Path, read_only: Sequence[str], tmp_path: Path
) -> None:
    (tmp_path / "new.txt").write_text("never seen\n", encoding="utf-8")
    for command in (["stats"], ["get", built.texts[0]], ["verify"]):
        done = process("--store", copied, *command, prefix=read_only)
        assert (done.returncode, done.stderr) == (0, "")
    writers = [["build", built.corpus], ["build", tmp_path / "new.txt"], ["train", *BASIC]]
    for command in writers:
        done = process("--store", copied, *command, prefix=read_only)
        assert (done.returncode, done.stdout) == (1, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"error: {copied}")
        assert "cannot be written" in line


@pytest.fixture
def locked(copied: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A store whose catalog another process is writing, and does not end."""
    defaults = Catalog.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "lock_timeout_s", 0.2)
    with closing(sqlite3.connect(copied / "catalog.sqlite", isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield copied


@pytest.mark.parametrize("command", [("stats",), ("train",), ("build", "CORPUS")])
def test_locked_catalog_is_waited_for_and_told(
    ec: CommandLine, built: Built, locked: Path, command: tuple[str, ...]
) -> None:
    words = [str(built.corpus) if word == "CORPUS" else word for word in command]
    line = ec.error(locked, *words)
    assert "catalog.sqlite: another process has held the catalog for 0.2 s" in line


def test_damaged_shard_is_told_and_mended_by_verify_and_the_same_build(
    ec: CommandLine, built: Built, copied: Path
) -> None:
    text, shard = built.texts[7], _shard(copied)
    before = ec.json(copied, "get", text)
    _flip_bit(shard, _places_of_values(copied, built.build["view"], text))
    for command in (("get", text), ("train", *BASIC), ("predict", "last", text)):
        line = ec.error(copied, *command)
        assert shard.name in line
        assert "`embedcache verify --fix`" in line
    done = ec(copied, "verify", "--json")
    assert (done.returncode, done.stderr) == (1, "")
    (corrupt,) = json.loads(done.stdout)["corrupt"]
    assert corrupt.startswith(str(shard.relative_to(copied)))
    assert shard.exists()
    fixed = ec.json(copied, "verify", "--fix")
    assert (fixed["fixed"], fixed["corrupt"], fixed["rows"]) == (True, [corrupt], 0)
    assert "no features" in ec.error(copied, "get", text)
    assert ec.json(copied, "build", built.corpus)["misses"] == 120
    assert ec.json(copied, "verify")["rows"] == 120
    assert ec.json(copied, "get", text) == before


@pytest.mark.parametrize(
    "harm",
    [
        Path.unlink,
        lambda path: path.write_bytes(b""),
        lambda path: os.truncate(path, path.stat().st_size // 2),
        lambda path: _flip_bit(path, 10),
    ],
    ids=["gone", "empty", "cut", "no HDF5"],
)
def test_shard_that_is_not_whole_is_told_and_mended(
    ec: CommandLine, built: Built, copied: Path, harm: Callable[[Path], object]
) -> None:
    shard = _shard(copied)
    harm(shard)
    assert shard.name in ec.error(copied, "get", built.texts[0])
    done = ec(copied, "verify")
    assert (done.returncode, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    assert any(shard.name in line for line in lines)
    assert lines[-1] == "1 wrong: run with --fix"
    assert ec.ok(copied, "verify", "--fix").splitlines()[-1].startswith("1 wrong: mended; build")
    assert ec.ok(copied, "verify").splitlines()[-1] == "nothing wrong"


def test_damaged_dataset_is_told_and_mended_by_the_same_build(
    ec: CommandLine, built: Built, copied: Path
) -> None:
    keys = copied / "datasets" / built.build["version"] / "keys.npy"
    _flip_bit(keys, 200)
    assert "keys.npy" in ec.error(copied, "train", *BASIC)
    for arguments in (("verify",), ("verify", "--fix")):
        done = ec(copied, *arguments)
        assert (done.returncode, done.stderr) == (1, "")
        assert "keys.npy" in done.stdout
        said = "1 wrong: build the dataset again from its files"
        assert done.stdout.splitlines()[-1] == said
    assert ec.json(copied, "build", built.corpus)["misses"] == 0
    assert ec.json(copied, "verify")["corrupt"] == []


def test_what_a_kill_left_is_an_orphan_and_nothing_wrong(ec: CommandLine, copied: Path) -> None:
    (copied / "tmp" / "half").write_bytes(b"half a shard")
    assert ec.json(copied, "verify")["orphans"] == ["tmp/half"]


def test_lost_catalog_is_mended_by_the_build_that_the_error_names(
    ec: CommandLine, built: Built, copied: Path
) -> None:
    (copied / "catalog.sqlite").unlink()
    for command in (("stats",), ("get", built.texts[0]), ("train",)):
        assert "run the same `embedcache build` again" in ec.error(copied, *command)
    ec.ok(copied, "build", built.corpus)
    ec.ok(copied, "verify", "--fix")
    assert ec.json(copied, "verify")["rows"] == 120
    assert ec.json(copied, "build", built.corpus)["hits"] == 120


def test_catalog_that_is_no_database_is_told(ec: CommandLine, copied: Path) -> None:
    (copied / "catalog.sqlite").write_bytes(b"no database at all" * 100)
    for command in (("stats",), ("verify",), ("train",)):
        assert "catalog.sqlite" in ec.error(copied, *command)


def test_changed_module_is_told_when_a_new_text_needs_it(
    ec: CommandLine, tmp_path: Path, tiny_module: str
) -> None:
    module, corpus, store = tmp_path / "module", tmp_path / "a.txt", tmp_path / "store"
    shutil.copytree(tiny_module, module)
    corpus.write_text("".join(f"__label__{n % 2} text {n}\n" for n in range(20)), encoding="utf-8")
    ec.ok(store, "build", corpus, "--module", module)
    ec.ok(store, "train", *BASIC, "--batch-size", "4")
    (module / "assets").mkdir(exist_ok=True)
    (module / "assets" / "extra").write_bytes(b"changed")
    line = ec.error(store, "predict", "last", "never seen")
    assert line.startswith(f"error: {module}: its files have the digest")
    assert ec.ok(store, "predict", "last", "text 3")
    shutil.rmtree(module)
    assert f"{module}: no such folder" in ec.error(store, "predict", "last", "never seen")
