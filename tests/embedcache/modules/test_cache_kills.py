"""Kills in the middle of a fetch, and two fetches at once: an entry is whole or not there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from embedcache.modules.cache import ModuleCache
from embedcache.modules.handles import files_digest
from tests.embedcache.modules.module_server import (
    HANG_S,
    ModuleServer,
    files_below,
    pack,
    run_fetch,
    write_archive,
)


@pytest.mark.parametrize("refresh", [False, True])
def test_killed_download_leaves_nothing_and_the_next_works(
    module_cache: ModuleCache, module_server: ModuleServer, refresh: bool
) -> None:
    url = module_server.url + "/m"
    before = [module_cache.fetch(url)] if refresh else []
    module_server.fault = "hang"
    code = (
        "from embedcache.modules.cache import ModuleCache, default_cache_path\n"
        f"ModuleCache(default_cache_path()).fetch({url!r}, refresh={refresh})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    assert module_server.is_half_sent.wait(HANG_S)
    process.kill()
    assert process.wait(HANG_S) == -signal.SIGKILL
    assert module_cache.list() == before
    assert [child.name for child in module_cache.path.iterdir() if child.name != "tmp"] == [
        module.path.parent.name for module in before
    ]
    module_server.fault = "none"
    assert module_cache.fetch(url, refresh=refresh).path.is_dir()


# Kills itself before or after the rename that puts an entry into the cache's folder.
KILLER_AT_PUBLICATION = """
import os
rename = os.rename
def rename_and_die(source, target):
    if "tmp" in str(target).split(os.sep)[-4:]:
        return rename(source, target)
    {after} and rename(source, target)
    os.kill(os.getpid(), 9)
os.rename = rename_and_die
"""
KILLER_AT_STEP = "import os, tarfile\n{} = lambda *a, **k: os.kill(os.getpid(), 9)\n"


@pytest.mark.parametrize(
    "killer",
    [
        KILLER_AT_STEP.format("tarfile.TarFile.extract"),
        KILLER_AT_STEP.format("os.rename"),
        KILLER_AT_STEP.format("os.replace"),
        KILLER_AT_STEP.format("os.fsync"),
        KILLER_AT_PUBLICATION.format(after=False),
    ],
    ids=["unpacking", "moving", "recording", "syncing", "publishing"],
)
def test_kill_between_download_and_publication_leaves_nothing(
    module_cache: ModuleCache, module_server: ModuleServer, killer: str
) -> None:
    url = module_server.url + "/m"
    killed = run_fetch(url, killer)
    killed.communicate(timeout=HANG_S)
    assert killed.returncode == -signal.SIGKILL
    assert [child.name for child in module_cache.path.iterdir()] == ["tmp"]
    assert files_below(module_cache.path / "tmp")  # it was killed at work
    whole = run_fetch(url)
    path = whole.communicate(timeout=HANG_S)[0].strip()
    assert (whole.returncode, Path(path)) == (0, module_cache.list()[0].path)


def test_kill_after_publication_leaves_a_whole_entry(
    module_cache: ModuleCache, module_server: ModuleServer, tiny_module: Path
) -> None:
    url = module_server.url + "/m"
    killed = run_fetch(url, KILLER_AT_PUBLICATION.format(after=True))
    killed.communicate(timeout=HANG_S)
    assert killed.returncode == -signal.SIGKILL
    module = module_cache.get(url)
    assert module is not None
    assert files_digest(module.path) == files_digest(tiny_module)
    assert len(module_server.requests) == 1


def test_entry_is_on_the_device_before_it_has_its_name(
    module_cache: ModuleCache, module_server: ModuleServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, rename = os.fsync, os.rename

    def spied_fsync(descriptor: int) -> None:
        steps.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def spied_rename(source: Path, target: Path) -> None:
        steps.append(f"{source} -> {target}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", spied_fsync)
    monkeypatch.setattr(os, "rename", spied_rename)
    entry = module_cache.fetch(module_server.url + "/m").path.parent
    published = next(step for step in steps if step.endswith(f"-> {entry}"))
    staged = published.partition(" -> ")[0]
    before, after = steps[: steps.index(published)], steps[steps.index(published) + 1 :]
    whole = {path.relative_to(entry).as_posix() for path in (entry, *entry.rglob("*"))}
    assert {path for path in whole if os.path.normpath(f"{staged}/{path}") not in before} == set()
    assert str(module_cache.path) in after


def test_what_a_killed_fetch_left_goes_after_a_day(
    module_cache: ModuleCache, module_server: ModuleServer
) -> None:
    now = time.time()
    for name, age_s in (("old", 25 * 3600), ("new", 3600)):
        left = module_cache.path / "tmp" / name
        left.mkdir(parents=True)
        for path in (left / "download.tar.gz", left):
            if path != left:
                path.write_bytes(b"x")
            os.utime(path, (now - age_s, now - age_s))
    # A folder keeps its time while a file in it grows.
    os.utime(module_cache.path / "tmp" / "new", (0, 0))
    module_cache.fetch(module_server.url + "/m")
    assert files_below(module_cache.path / "tmp") == {"new/download.tar.gz"}


def test_two_processes_that_fetch_at_once_both_succeed(
    module_cache: ModuleCache, module_server: ModuleServer, tiny_module: Path
) -> None:
    # Neither is answered before both have asked: both find nothing and both download.
    module_server.partners = threading.Barrier(2)
    url = module_server.url + "/m"
    processes = [run_fetch(url) for _ in range(2)]
    paths = {process.communicate(timeout=HANG_S)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    module = module_cache.get(url)
    assert module is not None
    assert paths == {str(module.path)}
    assert files_digest(module.path) == files_digest(tiny_module)
    assert len(module_server.requests) == 2
    assert module_cache.list() == [module]
    assert files_below(module_cache.path / "tmp") == set()


def test_cached_and_local_modules_load_no_tensorflow(
    module_cache: ModuleCache, module_server: ModuleServer, tiny_module: Path, tmp_path: Path
) -> None:
    archive = write_archive(tmp_path, pack(tiny_module))
    url = module_server.url + "/m"
    module_cache.fetch(url)
    for handle in (url, archive, str(tiny_module), "builtin:en-words-128"):
        process = run_fetch(handle)  # which asserts it
        process.communicate(timeout=HANG_S)
        assert process.returncode == 0
    assert len(module_server.requests) == 1
