"""Opening and making stores: what is one, what is not, and who may look inside."""

from __future__ import annotations

import json
import os
import pickle
import stat
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import embedcache.store.store as store_module
from embedcache.errors import NotAStoreError, StoreError, StoreReadOnlyError, StoreVersionError
from embedcache.store.layout import MARKER_NAME
from embedcache.store.store import FeatureStore, open_store

NUM_CREATORS = 4

Start = Callable[..., subprocess.Popen[str]]
Run = Callable[..., str]


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _marker(version: object = 1, what: object = "embedcache store") -> bytes:
    return json.dumps({"what": what, "version": version}).encode()


def test_new_store_is_made_with_the_folders_above_it(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "store"
    with open_store(path) as store:
        assert store.catalog.views() == []
    with open_store(path, create=False) as again:
        assert again.stats()["views"] == []


def test_store_is_private_to_its_owner(store: FeatureStore, programs: ModuleType) -> None:
    programs.put(store, ["a"])
    store.reader(programs.VIEW).save_index()
    folders = [path for path in store.path.rglob("*") if path.is_dir()]
    files = [path for path in store.path.rglob("*") if path.is_file()]
    assert {_mode(path) for path in [store.path, *folders]} == {0o700}
    assert {_mode(path) for path in files} == {0o600}
    assert {path.suffix for path in files} == {".h5", ".sqlite", ".json", ".index"}


def test_no_store_is_made_where_none_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(NotAStoreError, match=r"nothing: no embedcache store there; make one"):
        open_store(tmp_path / "nothing", create=False)
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("create", [True, False])
def test_file_is_not_a_store(tmp_path: Path, create: bool) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    with pytest.raises(NotAStoreError) as caught:
        open_store(path, create=create)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"x"


def test_folder_below_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(StoreError) as caught:
        open_store(tmp_path / "file" / "store")
    assert "\n" not in str(caught.value)


def test_foreign_folder_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_bytes(b"x")
    with pytest.raises(NotAStoreError, match=r"not empty \(it holds thesis\.txt\)"):
        open_store(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_empty_folder_becomes_a_store(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    assert (tmp_path / MARKER_NAME).exists()


@pytest.mark.parametrize("left", [(), ("tmp",), ("tmp", MARKER_NAME), ("catalog.sqlite",)])
def test_store_whose_making_was_killed_is_finished(
    tmp_path: Path, programs: ModuleType, left: tuple[str, ...]
) -> None:
    """What a kill can leave: a prefix of the steps; SQLite's empty file among them."""
    for name in left:
        if name == "tmp":
            (tmp_path / name).mkdir()
            (tmp_path / name / "0123456789abcdef").write_bytes(b"half")
        elif name == MARKER_NAME:
            (tmp_path / name).write_bytes(_marker())
        else:
            open_store(tmp_path).close()
            (tmp_path / name).write_bytes(b"")
    with open_store(tmp_path) as store:
        programs.put(store, ["a"])
        programs.assert_served(store, ["a"])


@pytest.mark.parametrize("create", [True, False])
def test_newer_store_asks_for_an_upgrade_and_is_not_touched(tmp_path: Path, create: bool) -> None:
    (tmp_path / MARKER_NAME).write_bytes(_marker(2))
    with pytest.raises(StoreVersionError, match=r"store version 2, .* reads up to 1; upgrade"):
        open_store(tmp_path, create=create)
    assert [path.name for path in tmp_path.iterdir()] == [MARKER_NAME]


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[1]",
        b"[" * 100_000,
        b"{}",
        b'"text"',
        _marker("new"),
        _marker(None),
        _marker(float("inf")),
        _marker(what="another program's"),
        b'{"version": 1}',
    ],
)
def test_garbage_for_a_marker_is_refused(tmp_path: Path, content: bytes, create: bool) -> None:
    (tmp_path / MARKER_NAME).write_bytes(content)
    with pytest.raises(NotAStoreError, match="marker") as caught:
        open_store(tmp_path, create=create)
    assert "\n" not in str(caught.value)
    assert (tmp_path / MARKER_NAME).read_bytes() == content


def test_folder_for_a_marker_is_refused(tmp_path: Path) -> None:
    (tmp_path / MARKER_NAME).mkdir()
    with pytest.raises(NotAStoreError, match="marker"):
        open_store(tmp_path)


def test_store_without_its_empty_folders_works(store: FeatureStore, programs: ModuleType) -> None:
    """As a copy by a tool that leaves empty folders out."""
    for name in ("tmp", "index", "runs", "datasets", "shards"):
        (store.path / name).rmdir()
    programs.put(store, ["a"])
    store.reader(programs.VIEW).save_index()
    programs.assert_served(store, ["a"])


def test_processes_that_make_one_store_at_once_all_open_it(tmp_path: Path, start: Start) -> None:
    path = tmp_path / "store"
    creators = [start("create", path) for _ in range(NUM_CREATORS)]
    for creator in creators:
        assert creator.stdout is not None
        assert creator.stdout.readline() == "ready\n"
    for creator in creators:
        assert creator.stdin is not None
        creator.stdin.close()
    for creator in creators:
        assert creator.stderr is not None
        errors = creator.stderr.read()
        assert creator.wait() == 0, errors
    open_store(path, create=False).close()
    assert list((path / "tmp").iterdir()) == []


def test_another_process_may_make_the_store_at_any_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one comes between the look at the marker and the look at the names."""
    real = Path.iterdir

    def late(path: Path) -> object:
        monkeypatch.setattr(Path, "iterdir", real)
        open_store(tmp_path).close()
        return real(path)

    monkeypatch.setattr(Path, "iterdir", late)
    open_store(tmp_path).close()


def test_read_only_store_serves_and_says_that_it_cannot_be_written(
    programs: ModuleType, start: Start
) -> None:
    # Not pytest's folder: those above it are private, and another user must get through.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = Path(folder, "store")
        with open_store(path) as store:
            programs.put(store, ["a", "b"])
        everything = [path, *path.rglob("*")]
        try:
            for entry in everything:
                if os.getuid() == 0:
                    os.chown(entry, 65534, 65534)
                entry.chmod(0o500 if entry.is_dir() else 0o400)
            process = start("read_as_nobody", path)
            output, errors = process.communicate()
            assert process.returncode == 0, errors
        finally:
            for entry in everything:
                entry.chmod(0o700 if entry.is_dir() else 0o600)
    assert output.startswith("StoreReadOnlyError ")
    assert output.count("\n") == 1


def test_place_that_cannot_be_written_is_one_line() -> None:
    with pytest.raises(StoreReadOnlyError, match=r"/sys/embedcache") as caught:
        open_store("/sys/embedcache")
    assert "\n" not in str(caught.value)


def test_store_on_a_network_file_system_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mounts(point: Path, kind: str) -> None:
        table = tmp_path / "mounts"
        escaped = str(point).replace(" ", "\\040")
        table.write_text(f"/dev/x / ext4 rw 0 0\nserver:/x {escaped} {kind} rw 0 0\n")
        monkeypatch.setattr(
            store_module, "Path", lambda path: table if "mounts" in str(path) else Path(path)
        )

    share = tmp_path / "a share"
    share.mkdir()
    (tmp_path / "link").symlink_to(share)
    mounts(share, "nfs4")
    for path in (share / "store", tmp_path / "link" / "store"):
        with pytest.raises(StoreError, match="network file system"):
            open_store(path)
    open_store(tmp_path / "beside").close()
    mounts(share, "xfs")
    open_store(share / "store").close()


def test_pickled_store_keeps_its_path_and_drops_what_is_open(
    store: FeatureStore, programs: ModuleType
) -> None:
    programs.put(store, ["a"])
    with pickle.loads(pickle.dumps(store)) as copy:
        assert copy.path == store.path
        assert copy is not store
        programs.assert_served(copy, ["a"])


def test_closed_store_opens_again_when_it_is_used(
    store: FeatureStore, programs: ModuleType
) -> None:
    programs.put(store, ["a"])
    features = store.get(programs.VIEW, ["a"])
    store.close()
    store.close()
    assert (features[0] == programs.matrix_of("a")).all()
    programs.assert_served(store, ["a"])


def test_store_that_was_open_at_a_fork_is_refused_in_the_child(
    store: FeatureStore, programs: ModuleType, run: Run
) -> None:
    programs.put(store, ["a"])
    lines = run("use_after_fork", store.path).splitlines()
    assert [line.split(": ")[0] for line in lines] == ["StoreError", "StoreError", "own"]
    for line in lines[:2]:
        assert "opened before a fork; open the store again in the child process" in line
