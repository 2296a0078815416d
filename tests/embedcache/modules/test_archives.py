"""Local archives: unpacked once, and nothing of a damaged or hostile one."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

import pytest

from embedcache.errors import ModuleError
from embedcache.modules.archives import ArchiveLimits, extract_saved_model
from embedcache.modules.cache import ModuleCache
from embedcache.modules.handles import files_digest
from tests.embedcache.modules.module_server import (
    files_below,
    flip_byte,
    member,
    pack,
    pack_members,
    refusal,
    write_archive,
)


@pytest.mark.parametrize("name", ["m.tar.gz", "m.tgz"])
def test_local_archive_is_unpacked_once(
    module_cache: ModuleCache,
    tiny_module: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    handle = write_archive(tmp_path, pack(tiny_module), name)
    assert module_cache.get(handle) is None
    module = module_cache.fetch(handle)
    assert (module.handle, module.digest) == (handle, files_digest(tiny_module))
    monkeypatch.chdir(tmp_path)
    assert module_cache.get(name) == module_cache.fetch(name) == module


def test_unchanged_archive_is_not_read_again(
    module_cache: ModuleCache, tiny_module: Path, tmp_path: Path
) -> None:
    packed = pack(tiny_module)
    handle = write_archive(tmp_path, packed)
    times = os.stat(handle)
    module = module_cache.fetch(handle)
    # Other bytes under the same size and time: only who reads them can tell.
    write_archive(tmp_path, bytes(len(packed)))
    os.utime(handle, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert module_cache.get(handle) == module_cache.fetch(handle) == module
    with pytest.raises(ModuleError, match="not a gzipped archive"):
        module_cache.fetch(handle, refresh=True)
    os.utime(handle)
    assert module_cache.get(handle) is None


def test_same_archive_under_another_path_is_not_unpacked_again(
    module_cache: ModuleCache, tiny_module: Path, tmp_path: Path
) -> None:
    module = module_cache.fetch(write_archive(tmp_path, pack(tiny_module)))
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.move(module.handle, tmp_path / "elsewhere" / "m.tar.gz")
    assert module_cache.fetch(str(moved)) == module
    assert module_cache.list() == [module]


def test_changed_archive_is_another_entry(
    module_cache: ModuleCache, tiny_module: Path, tmp_path: Path
) -> None:
    handle = write_archive(tmp_path, pack(tiny_module))
    old = module_cache.fetch(handle)
    other = Path(shutil.copytree(tiny_module, tmp_path / "other"))
    (other / "assets" / "more.txt").write_text("x")
    write_archive(tmp_path, pack(other))
    assert module_cache.get(handle) is None
    new = module_cache.fetch(handle)
    assert new.digest == files_digest(other)
    assert new.path != old.path
    assert module_cache.remove(handle)  # both: they have one handle
    assert module_cache.list() == []


def test_missing_archive_is_refused_and_can_still_be_removed(
    module_cache: ModuleCache, tiny_module: Path, tmp_path: Path
) -> None:
    handle = write_archive(tmp_path, pack(tiny_module))
    module_cache.fetch(handle)
    Path(handle).unlink()
    with pytest.raises(ModuleError, match="archive cannot be read"):
        module_cache.fetch(handle)
    assert module_cache.remove(handle) is True
    assert module_cache.remove(handle) is False


def test_archive_cut_anywhere_is_refused(
    module_cache: ModuleCache, tiny_module: Path, tmp_path: Path
) -> None:
    packed = pack(tiny_module)
    for end in range(2, len(packed), len(packed) // 97):
        assert "cut or damaged" in refusal(module_cache, write_archive(tmp_path, packed[:end]))
    module_cache.fetch(write_archive(tmp_path, packed))


# The second is a whole number of the blocks in which it is read: nothing then asks for more.
@pytest.mark.parametrize("num_bytes", [0, 2 << 20])
def test_archive_with_a_changed_byte_is_refused(
    module_cache: ModuleCache, tiny_module: Path, tmp_path: Path, num_bytes: int
) -> None:
    damaged = write_archive(tmp_path, flip_byte(pack(tiny_module), num_bytes=num_bytes))
    assert "cut or damaged" in refusal(module_cache, damaged)


@pytest.mark.parametrize(
    ("hostile", "part"),
    [
        (member("/etc/motd"), "lie outside"),
        (member("../../outside"), "lie outside"),
        (member("a/../../outside"), "lie outside"),
        (member("link", kind=tarfile.SYMTYPE), "a link or a device"),
        (member("link", kind=tarfile.LNKTYPE), "a link or a device"),
        (member("pipe", kind=tarfile.FIFOTYPE), "a link or a device"),
        (member("disk", kind=tarfile.BLKTYPE), "a link or a device"),
    ],
)
def test_hostile_member_is_refused_and_not_written(
    module_cache: ModuleCache, tmp_path: Path, hostile: tarfile.TarInfo, part: str
) -> None:
    packed = pack_members(member("saved_model.pb"), hostile)
    handle = write_archive(tmp_path, packed)
    message = refusal(module_cache, handle)
    assert part in message
    assert ascii(hostile.name) in message
    assert files_below(tmp_path) == {"m.tar.gz"}


def test_archive_within_the_limits_is_taken_and_beyond_them_refused(tmp_path: Path) -> None:
    packed = pack_members(member("saved_model.pb", size=1000), member("assets/a", size=24))
    archive = Path(write_archive(tmp_path, packed))

    def extract(name: str, limits: ArchiveLimits) -> Path:
        (tmp_path / name).mkdir()
        return extract_saved_model("m", archive, tmp_path / name, limits=limits)

    assert extract("0", ArchiveLimits(max_bytes=1024, max_members=2)) == tmp_path / "0"
    with pytest.raises(ModuleError, match="more than 1,023 bytes"):
        extract("1", ArchiveLimits(max_bytes=1023))
    with pytest.raises(ModuleError, match="more than 1 files"):
        extract("2", ArchiveLimits(max_members=1))


def test_archive_larger_than_the_disk_is_refused_before_it_fills_it(tmp_path: Path) -> None:
    # Only its header claims the size: the check comes before the content.
    huge = member("saved_model.pb", size=0)
    archive = Path(write_archive(tmp_path, pack_members(huge)))
    huge.size = shutil.disk_usage(tmp_path).free * 2
    with tarfile.open(archive, "w:gz") as tar:
        tar.fileobj.write(huge.tobuf())  # type: ignore[union-attr]
    (tmp_path / "unpacked").mkdir()
    with pytest.raises(ModuleError, match="free some space"):
        extract_saved_model(
            "m", archive, tmp_path / "unpacked", limits=ArchiveLimits(max_bytes=1 << 60)
        )


@pytest.mark.parametrize(
    ("members", "part"),
    [
        (["notes.txt"], "no SavedModel in the archive"),
        (["a/saved_model.pb", "b/saved_model.pb"], "no SavedModel in the archive"),
        (["a/b/saved_model.pb"], "no SavedModel in the archive"),
        (["saved_model.pb", "variables/variables.index"], "lacks its data"),
    ],
)
def test_archive_without_one_whole_saved_model_is_refused(
    module_cache: ModuleCache, tmp_path: Path, members: list[str], part: str
) -> None:
    handle = write_archive(tmp_path, pack_members(*map(member, members)))
    assert part in refusal(module_cache, handle)
