"""The commit protocol's file half: each of its steps made to fail once.

The faults are made by replacing a function of ``os``: a failing device cannot be had
otherwise. What can be had (a limit on the size of files) is used for real.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import stat
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from embedcache.errors import DiskFullError, StoreError, StoreReadOnlyError
from embedcache.store.publish import make_folder, mapped_os_errors, publish_file
from embedcache.store.store import FeatureStore, open_store
from embedcache.store.upkeep.maintain import verify_store

Run = Callable[..., str]

FAULTS = [
    ("open", errno.ENOSPC, DiskFullError),
    ("open", errno.EACCES, StoreReadOnlyError),
    ("open", errno.EROFS, StoreReadOnlyError),
    ("pwrite", errno.ENOSPC, DiskFullError),
    ("pwrite", errno.EDQUOT, DiskFullError),
    ("pwrite", errno.EFBIG, DiskFullError),
    ("pwrite", errno.EIO, StoreError),
    ("fsync", errno.EIO, StoreError),
    ("fsync", errno.ENOSPC, DiskFullError),
    ("close", errno.EIO, StoreError),
    ("replace", errno.EIO, StoreError),
    ("replace", errno.ENOSPC, DiskFullError),
]
SIZE_LIMITS = (0, 1, 300, 511, 512, 1000, 2000, 4096, 8000, 20_000, 50_000, 100_000, 1 << 20)


def _fail_once(monkeypatch: pytest.MonkeyPatch, name: str, code: int, *, call: int = 0) -> None:
    """Make one call of an ``os`` function fail, counted from 0; the others go through."""
    real = getattr(os, name)
    calls = iter(range(1_000_000))

    def faulty(*arguments: Any, **named: Any) -> Any:
        if next(calls) == call:
            if name == "close":
                real(*arguments, **named)
            raise OSError(code, os.strerror(code))
        return real(*arguments, **named)

    monkeypatch.setattr(os, name, faulty)


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def tmp(tmp_path: Path) -> Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    return folder


def test_file_is_published_whole_and_private(tmp_path: Path, tmp: Path) -> None:
    target = tmp_path / "shards" / "view" / "name.h5"
    publish_file([b"one ", bytearray(b"two "), memoryview(b"three")], target, tmp_folder=tmp)
    assert target.read_bytes() == b"one two three"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert stat.S_IMODE(target.parent.stat().st_mode) == 0o700
    assert _files(tmp) == []


def test_published_file_replaces_a_damaged_one_and_leaves_open_ones_alone(
    tmp_path: Path, tmp: Path
) -> None:
    target = tmp_path / "name.h5"
    target.write_bytes(b"damaged")
    with target.open("rb") as before:
        publish_file([b"whole"], target, tmp_folder=tmp)
        assert before.read() == b"damaged"
    assert target.read_bytes() == b"whole"


def test_short_writes_are_continued(
    tmp_path: Path, tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite

    def write_a_third(descriptor: int, buffer: memoryview, offset: int) -> int:
        return real(descriptor, buffer[: max(1, len(buffer) // 3)], offset)

    monkeypatch.setattr(os, "pwrite", write_a_third)
    content = bytes(range(256)) * 20
    publish_file([content, b"", content], tmp_path / "name.h5", tmp_folder=tmp)
    assert (tmp_path / "name.h5").read_bytes() == content * 2


def test_missing_folder_for_temporary_files_is_made(tmp_path: Path) -> None:
    publish_file([b"x"], tmp_path / "store" / "name", tmp_folder=tmp_path / "store" / "tmp")
    assert _files(tmp_path) == ["store/name"]


@pytest.mark.parametrize(("name", "code", "kind"), FAULTS)
def test_fault_at_any_step_leaves_nothing_and_is_one_line(
    tmp_path: Path,
    tmp: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    code: int,
    kind: type[StoreError],
) -> None:
    target = tmp_path / "name.h5"
    with monkeypatch.context() as context:
        _fail_once(context, name, code)
        with pytest.raises(kind) as caught:
            publish_file([b"content"], target, tmp_folder=tmp)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert _files(tmp_path) == []
    publish_file([b"content"], target, tmp_folder=tmp)
    assert target.read_bytes() == b"content"


@pytest.mark.parametrize(("name", "code", "kind"), FAULTS)
def test_fault_leaves_the_file_that_was_there(
    tmp_path: Path,
    tmp: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    code: int,
    kind: type[StoreError],
) -> None:
    target = tmp_path / "name.h5"
    target.write_bytes(b"before")
    with monkeypatch.context() as context:
        _fail_once(context, name, code)
        with pytest.raises(kind):
            publish_file([b"after"], target, tmp_folder=tmp)
    assert target.read_bytes() == b"before"
    assert _files(tmp_path) == ["name.h5"]


def test_folder_that_cannot_be_forced_is_an_error_though_the_file_is_there(
    tmp_path: Path, tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as context:
        _fail_once(context, "fsync", errno.EIO, call=1)
        with pytest.raises(StoreError, match="Input/output error"):
            publish_file([b"content"], tmp_path / "name.h5", tmp_folder=tmp)
    # Whole, and not catalogued: an orphan that the next attempt replaces.
    assert (tmp_path / "name.h5").read_bytes() == b"content"
    assert _files(tmp) == []


def test_interruption_leaves_no_temporary_file(
    tmp_path: Path, tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            publish_file([b"content"], tmp_path / "name.h5", tmp_folder=tmp)
    assert _files(tmp_path) == []


def test_file_is_forced_before_it_is_named_and_the_folders_after(
    tmp_path: Path, tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    names: dict[int, str] = {}
    real_open, real_fsync, real_replace = os.open, os.fsync, os.replace

    def spy_open(path: Any, *arguments: Any, **named: Any) -> int:
        descriptor = real_open(path, *arguments, **named)
        names[descriptor] = Path(path).parent.name if Path(path).is_file() else Path(path).name
        return descriptor

    def spy_fsync(descriptor: int) -> None:
        steps.append(f"fsync {names[descriptor]}")
        real_fsync(descriptor)

    def spy_replace(*arguments: Any) -> None:
        steps.append("replace")
        real_replace(*arguments)

    monkeypatch.setattr(os, "open", spy_open)
    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    publish_file([b"x"], tmp_path / "shards" / "view" / "name", tmp_folder=tmp)
    made = [f"fsync {tmp_path.name}", "fsync shards"]
    assert steps == [*made, "fsync tmp", "replace", "fsync view", "fsync shards"]


def test_folders_are_made_private_and_those_above_as_usual(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        make_folder(tmp_path / "a" / "b" / "c")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "a/b", "a/b/c")]
    assert modes == [0o755, 0o755, 0o700]
    make_folder(tmp_path / "a" / "b" / "c")


def test_file_in_place_of_a_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    for folder in (tmp_path / "a", tmp_path / "a" / "b"):
        with pytest.raises(StoreError) as caught:
            make_folder(folder)
        assert "\n" not in str(caught.value)


def test_other_exceptions_pass_through(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), mapped_os_errors(tmp_path):
        raise ZeroDivisionError


@pytest.mark.parametrize(("name", "code", "kind"), FAULTS)
def test_flush_that_fails_catalogues_nothing_and_can_be_repeated(
    store: FeatureStore,
    programs: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    code: int,
    kind: type[StoreError],
) -> None:
    programs.put(store, ["old"])
    writer = store.writer(programs.VIEW)
    programs.add_texts(writer, ["a", "b"])
    with monkeypatch.context() as context:
        _fail_once(context, name, code)
        with pytest.raises(kind):
            writer.flush()
    assert len(store.catalog.shards()) == 1
    assert store.contains(programs.VIEW, ["old", "a"]).tolist() == [True, False]
    report = verify_store(store)
    assert (report.is_well, report.orphans) == (True, [])
    writer.flush()
    programs.assert_served(store, ["old", "a", "b"])


def test_limit_on_file_sizes_is_an_error_and_no_crash(
    tmp_path: Path, programs: ModuleType, run: Run
) -> None:
    kept = ["old"]
    with open_store(tmp_path / "old") as store:
        programs.put(store, kept)
    for name, limit, error in json.loads(run("append_limited", tmp_path, *SIZE_LIMITS)):
        if error:
            assert error.startswith("DiskFullError: "), (name, limit, error)
            assert "\n" not in error
        elif name == "old":
            kept += [f"{limit}-{number}" for number in range(50)]
    assert not error, "the largest limit is enough"
    assert len(kept) < 1 + 50 * len(SIZE_LIMITS), "the smallest is not"
    with open_store(tmp_path / "old", create=False) as store:
        assert sum(record.num_texts for record in store.catalog.shards()) == len(kept)
        report = verify_store(store)
        assert (report.corrupt, report.missing) == ([], [])
        programs.assert_served(store, kept)
    for path in tmp_path.glob("new-*"):
        # What a full disk stopped halfway is finished when there is room.
        with open_store(path) as store:
            programs.put(store, ["a"])
            programs.assert_served(store, ["a"])


def test_shard_and_index_writes_fail_cleanly_at_every_size(
    store: FeatureStore, programs: ModuleType
) -> None:
    """The catalog is larger than the shard: only here is it the shard's write that fails."""
    writer = store.writer(programs.VIEW)
    programs.add_texts(writer, [str(number) for number in range(50)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in range(0, 3000, 250):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(DiskFullError, match="no space left"):
                writer.flush()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert _files(store.path) == ["catalog.sqlite", "embedcache.json"]
    writer.flush()
    programs.assert_served(store, ["0", "49"])
