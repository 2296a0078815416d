"""Fetching modules from a real server: whole, once, and checked at every use."""

from __future__ import annotations

import errno
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from embedcache.errors import ModuleError
from embedcache.modules import cache as cache_file
from embedcache.modules.cache import ModuleCache, default_cache_path
from embedcache.modules.download import fetch_from_bucket
from embedcache.modules.handles import Handle, files_digest, resolve_handle
from tests.embedcache.modules.module_server import (
    ModuleServer,
    files_below,
    pack,
    refusal,
)

# Fetching


def test_fetched_module_is_the_servers_and_is_fetched_once(
    module_cache: ModuleCache, module_server: ModuleServer, tiny_module: Path
) -> None:
    url = module_server.url + "/google/nnlm-en-dim128/2"
    assert module_cache.get(url) is None
    before = datetime.now(UTC).replace(microsecond=0)
    module = module_cache.fetch(url)
    assert files_digest(module.path) == files_digest(tiny_module) == module.digest
    assert module.num_bytes == sum(f.stat().st_size for f in tiny_module.rglob("*") if f.is_file())
    assert (module.handle, module.fetched_at >= before) == (url, True)
    assert module.path.parent.name.startswith("google-nnlm-en-dim128-2-")
    assert module_server.requests == ["/google/nnlm-en-dim128/2?tf-hub-format=compressed"]

    assert module_cache.get(url) == module_cache.fetch(url + "/") == module
    assert resolve_handle(url, cache=module_cache) == resolve_handle(url) == module.path
    assert module_cache.list() == [module]
    assert len(module_server.requests) == 1
    assert files_below(module_cache.path / "tmp") == set()


def test_url_of_an_archive_is_asked_for_as_it_is(
    module_cache: ModuleCache, module_server: ModuleServer
) -> None:
    module_cache.fetch(module_server.url + "/files/m.tar.gz?signature=a%2Fb")
    module_cache.fetch(module_server.url + "/m?version=3")
    assert module_server.requests == [
        "/files/m.tar.gz?signature=a%2Fb",
        "/m?version=3&tf-hub-format=compressed",
    ]


def test_archive_with_a_top_folder_is_taken(
    module_cache: ModuleCache, module_server: ModuleServer, tiny_module: Path
) -> None:
    module_server.body = pack(tiny_module, top="nnlm-en-dim128")
    path = module_cache.fetch(module_server.url + "/m").path
    assert files_digest(path) == files_digest(tiny_module)


def test_refresh_fetches_again_and_replaces(
    module_cache: ModuleCache, module_server: ModuleServer, tiny_module: Path, tmp_path: Path
) -> None:
    url = module_server.url + "/m"
    old = module_cache.fetch(url)
    other = Path(shutil.copytree(tiny_module, tmp_path / "other"))
    (other / "assets" / "more.txt").write_text("x")
    module_server.body = pack(other)
    assert module_cache.fetch(url).digest == old.digest
    new = module_cache.fetch(url, refresh=True)
    assert new.digest == files_digest(other) != old.digest
    assert module_cache.list() == [new]
    assert files_below(module_cache.path / "tmp") == set()


def test_failed_refresh_keeps_what_was_there(
    module_cache: ModuleCache, module_server: ModuleServer
) -> None:
    url = module_server.url + "/m"
    module = module_cache.fetch(url)
    module_server.fault = "404"
    with pytest.raises(ModuleError, match="404"):
        module_cache.fetch(url, refresh=True)
    assert module_cache.get(url) == module


def test_builtin_and_folder_are_not_cached(module_cache: ModuleCache, tiny_module: Path) -> None:
    for handle in ("builtin:en-words-128", str(tiny_module)):
        assert module_cache.get(handle) is None
        assert module_cache.remove(handle) is False
        assert "needs no fetching" in refusal(module_cache, handle)


# What a server may do


@pytest.mark.parametrize(
    ("fault", "parts"),
    [
        ("404", ("HTTP 404", "check the name and the version")),
        ("500", ("HTTP 500", "try again later")),
        ("html", ("a web page, not an archive", "log in")),
        ("cut", ("broke off after", "try again")),
        ("short", ("cut or damaged", "fetch or copy it again")),
        ("reset", ("cannot be fetched", "check the address and the network")),
    ],
)
def test_fault_of_the_server_is_one_line_and_the_next_fetch_works(
    module_cache: ModuleCache, module_server: ModuleServer, fault: str, parts: tuple[str, ...]
) -> None:
    url = module_server.url + "/m/1"
    module_server.fault = fault
    message = refusal(module_cache, url)
    assert url in message
    assert [part for part in parts if part not in message] == []
    if fault != "short":  # which is told only when it is unpacked
        assert "download it by other means and name its folder or .tar.gz" in message
    module_server.fault = "none"
    assert module_cache.fetch(url).path.is_dir()


@pytest.mark.parametrize("fault", ["silent", "hang"])
def test_server_that_does_not_go_on_is_given_up(
    module_cache: ModuleCache, module_server: ModuleServer, fault: str
) -> None:
    module_server.fault = fault
    impatient = ModuleCache(module_cache.path, timeout_s=0.2)
    assert "does not answer" in refusal(impatient, module_server.url + "/m")


def test_nobody_listening_is_one_line(module_cache: ModuleCache) -> None:
    # Port 9 of loopback: nothing listens there.
    message = refusal(module_cache, "http://127.0.0.1:9/module/1")
    assert "cannot be fetched (" in message
    assert "refused" in message


def test_body_that_is_no_archive_is_one_line(
    module_cache: ModuleCache, module_server: ModuleServer, tiny_module: Path
) -> None:
    module_server.body = b"PK\3\4 a zip"
    assert "not a gzipped archive" in refusal(module_cache, module_server.url + "/m")
    module_server.body = b""
    assert "not a gzipped archive" in refusal(module_cache, module_server.url + "/m")


# What may happen to a cached copy


def test_changed_copy_is_refused_until_it_is_removed(
    module_cache: ModuleCache, module_server: ModuleServer
) -> None:
    url = module_server.url + "/m"
    module = module_cache.fetch(url)
    with (module.path / "saved_model.pb").open("ab") as file:
        file.write(b"\0")
    for use in (module_cache.get, module_cache.fetch, resolve_handle):
        with pytest.raises(ModuleError, match="the cached copy of") as error:
            use(url)
        message = str(error.value)
        assert module.digest in message
        assert files_digest(module.path) in message
        assert f"`embedcache modules remove {url}`" in message
    assert module_cache.remove(url) is True
    assert module_cache.remove(url) is False
    assert module_cache.get(url) is None
    assert module_cache.fetch(url).digest == module.digest


def test_copy_whose_files_a_cleaner_deleted_is_refused(
    module_cache: ModuleCache, module_server: ModuleServer
) -> None:
    url = module_server.url + "/m"
    module = module_cache.fetch(url)
    shutil.rmtree(module.path)
    module.path.mkdir()
    with pytest.raises(ModuleError, match="the cached copy of"):
        module_cache.get(url)
    assert module_cache.fetch(url, refresh=True).digest == module.digest


def test_touched_copy_is_digested_once_more_only(
    module_cache: ModuleCache, module_server: ModuleServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = module_server.url + "/m"
    module = module_cache.fetch(url)
    digested: list[Path] = []
    digest = cache_file.files_digest
    monkeypatch.setattr(
        cache_file, "files_digest", lambda path: digested.append(path) or digest(path)
    )
    assert module_cache.get(url) == module
    assert digested == []
    os.utime(module.path / "saved_model.pb", (1, 1))
    assert module_cache.get(url) == module_cache.get(url) == module
    assert digested == [module.path]


@pytest.mark.parametrize(
    "record", [None, b"", b"[]", b'{"version": 1}', b'{"version": 2}', b"\xff"]
)
def test_entry_with_a_damaged_record_is_refused_left_out_and_replaced(
    module_cache: ModuleCache, module_server: ModuleServer, record: bytes | None
) -> None:
    url = module_server.url + "/m"
    module = module_cache.fetch(url)
    file = module.path.parent / "module.json"
    file.unlink() if record is None else file.write_bytes(record)
    with pytest.raises(ModuleError, match="delete") as error:
        module_cache.get(url)
    assert "\n" not in str(error.value)
    assert module_cache.list() == []
    assert module_cache.fetch(url, refresh=True).digest == module.digest
    file.unlink()
    assert module_cache.remove(url) is True
    assert module_cache.get(url) is None


# The folder


def test_cache_lies_where_the_variable_says_or_in_the_users_caches(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert default_cache_path() == tmp_path / "modules"
    monkeypatch.setenv("EMBEDCACHE_MODULES", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    path = default_cache_path()
    assert path.name == "modules"
    assert "embedcache" in path.parts
    assert ModuleCache(path).list() == []
    assert not path.exists()


def test_strange_files_in_the_cache_folder_are_in_nobodys_way(
    module_cache: ModuleCache, module_server: ModuleServer
) -> None:
    (module_cache.path / "strange").mkdir(parents=True)
    (module_cache.path / "notes.txt").write_text("x")
    module = module_cache.fetch(module_server.url + "/m")
    assert module_cache.list() == [module]
    assert module_cache.remove(module.handle) is True
    assert files_below(module_cache.path) == {"notes.txt"}


def test_cache_folder_that_is_a_file_is_one_line(
    module_cache: ModuleCache, module_server: ModuleServer
) -> None:
    module_cache.path.write_text("in the way")
    with pytest.raises(ModuleError, match="EMBEDCACHE_MODULES") as error:
        module_cache.fetch(module_server.url + "/m")
    assert "\n" not in str(error.value)
    assert module_server.requests == []


@pytest.mark.parametrize(
    ("number", "part"),
    [
        (errno.ENOSPC, "no space left on the device"),
        (errno.EROFS, "cannot be used"),
        (errno.EACCES, "cannot be used"),
        (errno.EIO, "mend that"),
    ],
)
def test_file_systems_refusal_is_one_line_and_leaves_nothing(
    module_cache: ModuleCache,
    module_server: ModuleServer,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    part: str,
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    # A full or a failing disk cannot be made otherwise: fsync is where both show.
    monkeypatch.setattr(os, "fsync", refuse)
    url = module_server.url + "/m"
    message = refusal(module_cache, url)
    assert part in message
    assert "$EMBEDCACHE_MODULES" in message
    monkeypatch.undo()
    assert module_cache.fetch(url).path.is_dir()


# Buckets, by TensorFlow's own file systems: ram:// is one that needs no network


def put_into_ram(source: Path, target: str) -> None:
    import tensorflow as tf

    for file in source.rglob("*"):
        if file.is_file():
            name = f"{target}/{file.relative_to(source).as_posix()}"
            tf.io.gfile.makedirs(name.rpartition("/")[0])
            tf.io.gfile.copy(str(file), name, overwrite=True)


def test_folder_of_a_bucket_is_copied(
    tiny_module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_into_ram(tiny_module, "ram://bucket/m")
    monkeypatch.setenv("TFHUB_CACHE_DIR", "as it was")
    path = fetch_from_bucket(Handle("ram://bucket/m", "url", "ram://bucket/m"), tmp_path)
    assert files_digest(path) == files_digest(tiny_module)
    assert os.environ["TFHUB_CACHE_DIR"] == "as it was"


def test_bucket_that_has_no_such_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModuleError, match="cannot be fetched") as error:
        fetch_from_bucket(Handle("ram://bucket/no", "url", "ram://bucket/no"), tmp_path)
    assert "\n" not in str(error.value)
