"""Shards: golden files, layout on disk, reading by blocks, rows and threads."""

from __future__ import annotations

import errno
import os
import re
import resource
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest

import embedcache.store.shard as shard_module
from embedcache.errors import CorruptShardError, StoreError
from embedcache.keys import keys_of_texts, sort_order
from embedcache.ragged import splits_of_lengths
from embedcache.store.shard import Shard, ShardContent, image_digest
from embedcache.view import FeatureView

DOCUMENT = Path(__file__).parents[3] / "docs" / "shard-format.md"

# Written out by hand: key, was it cut, rows. The order is that of the keys.
GOLDEN_DENSE = [
    ("5a711247b2b24378bbabfb6173b1bf29", True, [[10.0, 11.0, 12.0], [13.0, -14.0, 0.125]]),
    (
        "c66c614c0c589839d36c8e03e7b76e1e",
        True,
        [[0.5, -1.0, 2.0], [0.25, 65504.0, -0.0], [2**-24, 1.5, 3.0]],
    ),
    ("cae66941d9efbd404e4d88758ea67670", False, []),
    ("d4b1b0202b21bb84e60a3d272ecab0db", False, [[-7.0, 8.0, 9.5]]),
]
GOLDEN_DICTIONARY = [
    ("5a711247b2b24378bbabfb6173b1bf29", True, [[1e30, 3.0], [0.1, -0.2]]),
    ("c66c614c0c589839d36c8e03e7b76e1e", True, [[0.0, 5.5], [0.1, -0.2], [0.0, 5.5]]),
    ("cae66941d9efbd404e4d88758ea67670", False, []),
    ("d4b1b0202b21bb84e60a3d272ecab0db", False, [[1e30, 3.0]]),
]
GOLDEN = [
    ("dense.h5", "<f2", 3, GOLDEN_DENSE, "55c7319f7c696f377c00e49d5fbab778"),
    ("dictionary.h5", "<f4", 2, GOLDEN_DICTIONARY, "292d61fbf35537e2569b96a7a2efbb06"),
]


def _expected(rows: list[Any], dtype: str, dim: int) -> np.ndarray[Any, Any]:
    return np.array(rows, dtype).reshape(-1, dim)


@pytest.mark.parametrize(("name", "dtype", "dim", "texts", "fingerprint"), GOLDEN)
def test_golden_shard_of_version_1_is_read_today(
    golden: Path, name: str, dtype: str, dim: int, texts: list[Any], fingerprint: str
) -> None:
    shard = Shard(golden / name)
    shard.verify_all()
    assert shard.view.fingerprint == fingerprint
    assert (len(shard), shard.num_tokens) == (4, 6)
    assert [key.tobytes().hex() for key in shard.keys] == [key for key, _, _ in texts]
    assert shard.flags.tolist() == [int(was_cut) for _, was_cut, _ in texts]
    for matrix, (_, _, rows) in zip(shard.read(np.arange(4)), texts, strict=True):
        np.testing.assert_array_equal(matrix, _expected(rows, dtype, dim), strict=True)
    if name == "dense.h5":
        assert np.signbit(shard.read(np.array([1]))[0][1, 2]), "-0.0 keeps its sign"


@pytest.mark.parametrize("name", ["dense.h5", "dictionary.h5"])
def test_todays_code_writes_the_golden_bytes(
    golden: Path, make_golden: ModuleType, tmp_path: Path, name: str
) -> None:
    image = make_golden.golden_images()[name]
    made_with = (golden / "hdf5-version.txt").read_text().strip()
    if made_with == h5py.version.hdf5_version:
        assert image == (golden / name).read_bytes()
    # Another release of the HDF5 library may lay the same content out otherwise.
    (tmp_path / name).write_bytes(image)
    now, then = Shard(tmp_path / name), Shard(golden / name)
    assert now.view == then.view
    for attribute in ("keys", "row_splits", "flags"):
        np.testing.assert_array_equal(getattr(now, attribute), getattr(then, attribute))
    rows = np.arange(4)
    np.testing.assert_array_equal(now.read(rows).values, then.read(rows).values, strict=True)


def _reader_of_document() -> tuple[Callable[[Path], Any], str]:
    found = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert len(found) == 1
    namespace: dict[str, Any] = {}
    exec(compile(found[0], str(DOCUMENT), "exec"), namespace)
    return namespace["read_shard"], found[0]


def test_reader_in_the_document_is_small_and_does_without_embedcache() -> None:
    _, source = _reader_of_document()
    assert source.count("\n") <= 40
    assert "embedcache." not in source
    assert "import embedcache" not in source


@pytest.mark.parametrize(("name", "dtype", "dim", "texts", "fingerprint"), GOLDEN)
def test_reader_in_the_document_reads_the_golden_shards(
    golden: Path, name: str, dtype: str, dim: int, texts: list[Any], fingerprint: str
) -> None:
    read_shard, _ = _reader_of_document()
    found = read_shard(golden / name)
    assert list(found) == [key for key, _, _ in texts]
    for key, was_cut, rows in texts:
        matrix, flag = found[key]
        assert flag is was_cut
        np.testing.assert_array_equal(matrix, _expected(rows, dtype, dim), strict=True)


def test_reader_in_the_document_refuses_a_changed_value(golden: Path, tmp_path: Path) -> None:
    read_shard, _ = _reader_of_document()
    path = tmp_path / "changed.h5"
    path.write_bytes((golden / "dense.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        file["values"][0, 0] += 1
    with pytest.raises(ValueError, match="not what was written"):
        read_shard(path)


def _content(
    lengths: list[int], *, dim: int = 4, encoding: str = "dense", dtype: str = "float16"
) -> ShardContent:
    """Texts ``0``, ``1``, … with rows that count up."""
    view = FeatureView(
        module_digest="0" * 32, signature="__call__", tokenizer="module", dim=dim, dtype=dtype
    )
    keys = keys_of_texts([str(number) for number in range(len(lengths))])
    num_rows = sum(lengths)
    if encoding == "dense":
        values = np.arange(num_rows * dim).reshape(num_rows, dim) % 2048
        rows: dict[str, Any] = {"values": values.astype(dtype)}
    else:
        dictionary = np.arange(7 * dim).reshape(7, dim).astype(dtype)
        rows = {"codes": (np.arange(num_rows) % 7).astype("<u4"), "dictionary": dictionary}
    flags = np.zeros(len(lengths), np.uint8)
    splits = splits_of_lengths(lengths)
    return ShardContent(view, keys[sort_order(keys)], splits, flags, rows)


def _rows(content: ShardContent) -> np.ndarray[Any, Any]:
    if "values" in content.rows:
        return content.rows["values"]
    spelled: np.ndarray[Any, Any] = content.rows["dictionary"][content.rows["codes"]]
    return spelled


def _write(content: ShardContent, folder: Path) -> Path:
    image = content.image()
    path = folder / f"{image_digest(image)}.h5"
    path.write_bytes(image)
    return path


@pytest.mark.parametrize("encoding", ["dense", "dictionary"])
def test_same_content_is_the_same_bytes(encoding: str) -> None:
    first = _content([3, 0, 2], encoding=encoding).image()
    assert bytes(first) == bytes(_content([3, 0, 2], encoding=encoding).image())
    assert image_digest(first) != image_digest(_content([3, 2, 0], encoding=encoding).image())


@pytest.mark.parametrize("encoding", ["dense", "dictionary"])
def test_large_datasets_begin_at_a_page(tmp_path: Path, encoding: str) -> None:
    path = _write(_content([5] * 2000, dim=64, encoding=encoding), tmp_path)
    with h5py.File(path, "r") as file:
        large = {name: dset for name, dset in file.items() if dset.nbytes >= 4096}
        assert {"values", "keys"} <= set(large) or {"codes", "keys"} <= set(large)
        assert {dset.id.get_offset() % 4096 for dset in large.values()} == {0}


@pytest.mark.parametrize("encoding", ["dense", "dictionary"])
@pytest.mark.parametrize("lengths", [[], [0], [1], [0, 0, 0], [0, 3, 0, 0, 1, 0]])
def test_empty_and_tiny_shards_are_whole(tmp_path: Path, lengths: list[int], encoding: str) -> None:
    content = _content(lengths, encoding=encoding)
    shard = Shard(_write(content, tmp_path))
    shard.verify_all()
    features = shard.read(np.arange(len(lengths)))
    assert features.lengths.tolist() == lengths
    np.testing.assert_array_equal(features.values, _rows(content), strict=True)
    assert shard.take(np.zeros(0, np.int64)).shape == (0, 4)
    assert _reader_of_document()[0](shard.path).keys() == {
        key.tobytes().hex() for key in shard.keys
    }


def test_rows_straddle_blocks_and_only_touched_blocks_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Rows of 14 bytes in blocks of 64: every fourth or fifth one lies in two blocks.
    monkeypatch.setattr(shard_module, "BLOCK_BYTES", 64)
    content = _content([1] * 40, dim=7)
    path = _write(content, tmp_path)
    expected = content.rows["values"]
    num_blocks = -(-expected.nbytes // 64)
    image = bytearray(path.read_bytes())
    with h5py.File(path, "r") as file:
        offset = file["values"].id.get_offset()
    for block in range(num_blocks):
        damaged = bytearray(image)
        damaged[offset + block * 64 + 5] ^= 16
        path.write_bytes(damaged)
        for row in range(40):
            touches = row * 14 // 64 <= block <= (row * 14 + 13) // 64
            shard = Shard(path)
            if touches:
                with pytest.raises(CorruptShardError, match=f"block {block} of 'values'"):
                    shard.take(np.array([row]))
            else:
                np.testing.assert_array_equal(shard.take(np.array([row]))[0], expected[row])
        with pytest.raises(CorruptShardError):
            Shard(path).verify_all()


def test_row_longer_than_a_block_is_checked_wholly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_module, "BLOCK_BYTES", 16)
    path = _write(_content([1, 1], dim=40), tmp_path)
    with h5py.File(path, "r") as file:
        offset = file["values"].id.get_offset()
    image = bytearray(path.read_bytes())
    image[offset + 40] ^= 1
    path.write_bytes(image)
    with pytest.raises(CorruptShardError, match="block 2 of 'values'"):
        Shard(path).take(np.array([0]))


def test_shard_of_several_real_blocks(tmp_path: Path) -> None:
    content = _content([3001] * 5, dim=300, dtype="float32")
    expected = content.rows["values"]
    assert expected.nbytes > 2 * shard_module.BLOCK_BYTES
    path = _write(content, tmp_path)
    shard = Shard(path)
    np.testing.assert_array_equal(shard.read(np.array([4, 0, 4]))[1], expected[:3001])
    shard.verify_all()
    with path.open("r+b") as file:
        file.seek(-1000, os.SEEK_END)
        last = file.read(1)
        file.seek(-1000, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    damaged = Shard(path)
    np.testing.assert_array_equal(damaged.read(np.array([0]))[0], expected[:3001])
    with pytest.raises(CorruptShardError, match="block 2 of 'values'"):
        damaged.read(np.array([4]))


@pytest.mark.parametrize("encoding", ["dense", "dictionary"])
def test_threads_read_one_shard_at_once(tmp_path: Path, encoding: str) -> None:
    content = _content([3] * 500, encoding=encoding)
    expected = _rows(content).reshape(500, 3, 4)
    shard = Shard(_write(content, tmp_path))
    barrier = threading.Barrier(4)

    def read(seed: int) -> bool:
        rows = np.random.default_rng(seed).permutation(500)
        barrier.wait()
        return bool((shard.read(rows).values.reshape(500, 3, 4) == expected[rows]).all())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(4)))


def test_threads_open_shards_at_once(tmp_path: Path) -> None:
    path = _write(_content([3] * 50), tmp_path)
    with ThreadPoolExecutor(4) as pool:
        assert {len(shard) for shard in pool.map(Shard, [path] * 20)} == {50}


def test_shard_that_is_gone_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(CorruptShardError, match=r"nothing\.h5: is missing; run `embedcache verify"):
        Shard(tmp_path / "nothing.h5")


def test_shard_is_not_blamed_for_too_many_open_files(golden: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 8, hard))
        with suppress(OSError):
            while True:
                held.append(os.open(golden / "dense.h5", os.O_RDONLY))
        with pytest.raises(StoreError, match="Too many open files") as caught:
            Shard(golden / "dense.h5")
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not isinstance(caught.value, CorruptShardError)


def test_shard_is_not_blamed_for_what_this_user_may_not_do(
    golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(h5py, "File", refuse)
    with pytest.raises(StoreError, match="Permission denied") as caught:
        Shard(golden / "dense.h5")
    assert not isinstance(caught.value, CorruptShardError)
