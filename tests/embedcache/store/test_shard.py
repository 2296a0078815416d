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
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest

import embedcache.store.shards.image as image_module
import embedcache.store.shards.shard as shard_module
from embedcache.errors import CorruptShardError, StoreError
from embedcache.keys import keys_of_texts, sort_order
from embedcache.ragged import splits_of_lengths
from embedcache.store.shards.image import ShardContent
from embedcache.store.shards.shard import Shard
from embedcache.view import FeatureView

DOCUMENT = Path(__file__).parents[3] / "docs" / "shard-format.md"

# Written out by hand: key, flags, rows, token ids, spans. The order is that of the keys.
GOLDEN_DENSE = [
    (
        "5a711247b2b24378bbabfb6173b1bf29", 1, [[10.0, 11.0, 12.0], [13.0, -14.0, 0.125]],
        [0, 2919], [[0, 0], [0, 3]],
    ),
    (
        "c66c614c0c589839d36c8e03e7b76e1e",
        1,
        [[0.5, -1.0, 2.0], [0.25, 65504.0, -0.0], [2**-24, 1.5, 3.0]],
        [1037, 2204, 2143],
        [[0, 1], [2, 6], [7, 11]],
    ),
    ("cae66941d9efbd404e4d88758ea67670", 0, [], [], []),
    ("d4b1b0202b21bb84e60a3d272ecab0db", 0, [[-7.0, 8.0, 9.5]], [4294967295], [[0, 2]]),
]  # fmt: skip
GOLDEN_DICTIONARY = [
    ("5a711247b2b24378bbabfb6173b1bf29", 1, [[1e30, 3.0], [0.1, -0.2]], None, [[0, 0], [0, 3]]),
    (
        "c66c614c0c589839d36c8e03e7b76e1e", 1, [[0.0, 5.5], [0.1, -0.2], [0.0, 5.5]],
        None, [[0, 1], [2, 6], [7, 11]],
    ),
    ("cae66941d9efbd404e4d88758ea67670", 0, [], None, []),
    ("d4b1b0202b21bb84e60a3d272ecab0db", 0, [[1e30, 3.0]], None, [[0, 2]]),
]  # fmt: skip
DENSE_FINGERPRINT = "55c7319f7c696f377c00e49d5fbab778"
DICTIONARY_FINGERPRINT = "292d61fbf35537e2569b96a7a2efbb06"


def _of_version_1(texts: list[Any]) -> list[Any]:
    return [(key, flags, rows, None, None) for key, flags, rows, _, _ in texts]


def _of_version_2(texts: list[Any]) -> list[Any]:
    """The second text is windowed, not cut."""
    return [(key, flags + (place == 1), *more) for place, (key, flags, *more) in enumerate(texts)]


GOLDEN = [
    ("dense.h5", "<f2", 3, _of_version_1(GOLDEN_DENSE), DENSE_FINGERPRINT),
    ("dictionary.h5", "<f4", 2, _of_version_1(GOLDEN_DICTIONARY), DICTIONARY_FINGERPRINT),
    ("dense-v2.h5", "<f2", 3, _of_version_2(GOLDEN_DENSE), DENSE_FINGERPRINT),
    ("dictionary-v2.h5", "<f4", 2, GOLDEN_DICTIONARY, DICTIONARY_FINGERPRINT),
]
GOLDEN_NAMES = [name for name, *_ in GOLDEN]


def _assert_tokens(found: Any, expected: list[Any] | None, shape: tuple[int, ...]) -> None:
    if expected is None:
        assert found is None
    else:
        wanted = np.array(expected, "<u4").reshape(-1, *shape)
        np.testing.assert_array_equal(found, wanted, strict=True)


def _expected(rows: list[Any], dtype: str, dim: int) -> np.ndarray[Any, Any]:
    return np.array(rows, dtype).reshape(-1, dim)


@pytest.mark.parametrize(("name", "dtype", "dim", "texts", "fingerprint"), GOLDEN)
def test_golden_shard_of_any_version_is_read_today(
    golden: Path, name: str, dtype: str, dim: int, texts: list[Any], fingerprint: str
) -> None:
    shard = Shard(golden / name)
    shard.verify_all()
    assert shard.view.fingerprint == fingerprint
    assert (len(shard), shard.num_tokens) == (4, 6)
    assert [key.tobytes().hex() for key in shard.keys] == [key for key, *_ in texts]
    assert shard.flags.tolist() == [flags for _, flags, *_ in texts]
    for matrix, (_, _, rows, _, _) in zip(shard.read(np.arange(4)), texts, strict=True):
        np.testing.assert_array_equal(matrix, _expected(rows, dtype, dim), strict=True)
    for row, (_, _, _, token_ids, spans) in enumerate(texts):
        _assert_tokens(shard.read_token_ids(row), token_ids, ())
        _assert_tokens(shard.read_spans(row), spans, (2,))
    if dtype == "<f2":
        assert np.signbit(shard.read(np.array([1]))[0][1, 2]), "-0.0 keeps its sign"


@pytest.mark.parametrize("name", GOLDEN_NAMES)
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
    for row in range(4):
        np.testing.assert_array_equal(now.read_spans(row), then.read_spans(row))
        np.testing.assert_array_equal(now.read_token_ids(row), then.read_token_ids(row))


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
    assert list(found) == [key for key, *_ in texts]
    for key, flags, rows, token_ids, spans in texts:
        text = found[key]
        assert (text["was_cut"], text["was_windowed"]) == (flags in (1, 3), flags in (2, 3))
        np.testing.assert_array_equal(text["rows"], _expected(rows, dtype, dim), strict=True)
        _assert_tokens(text.get("token_ids"), token_ids, ())
        _assert_tokens(text.get("spans"), spans, (2,))


@pytest.mark.parametrize("dataset", ["values", "token_ids", "spans"])
def test_reader_in_the_document_refuses_a_changed_value(
    golden: Path, tmp_path: Path, dataset: str
) -> None:
    read_shard, _ = _reader_of_document()
    path = tmp_path / "changed.h5"
    path.write_bytes((golden / "dense-v2.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        file[dataset][...] += 1
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
    path = folder / f"{blake2b(image, digest_size=16).hexdigest()}.h5"
    path.write_bytes(image)
    return path


@pytest.mark.parametrize("encoding", ["dense", "dictionary"])
def test_same_content_is_the_same_bytes(encoding: str) -> None:
    first = _content([3, 0, 2], encoding=encoding).image()
    assert bytes(first) == bytes(_content([3, 0, 2], encoding=encoding).image())
    assert first != _content([3, 2, 0], encoding=encoding).image()


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


def _with_tokens(content: ShardContent, *names: str) -> ShardContent:
    """The content with token ids and spans that count up."""
    num_tokens = int(content.row_splits[-1])
    numbers = np.arange(num_tokens, dtype="<u4")
    arrays = {"token_ids": numbers * 7, "spans": np.stack([numbers, numbers * 2], axis=1)}
    return replace(content, extras={name: arrays[name] for name in names})


@pytest.mark.parametrize("encoding", ["dense", "dictionary"])
@pytest.mark.parametrize("names", [["token_ids"], ["spans"], ["token_ids", "spans"]])
@pytest.mark.parametrize("lengths", [[], [0, 0], [0, 3, 0, 0, 1, 0]])
def test_token_ids_and_spans_stand_with_either_encoding(
    tmp_path: Path, lengths: list[int], names: list[str], encoding: str
) -> None:
    content = _with_tokens(_content(lengths, encoding=encoding), *names)
    shard = Shard(_write(content, tmp_path))
    shard.verify_all()
    np.testing.assert_array_equal(shard.read(np.arange(len(lengths))).values, _rows(content))
    from_document = list(_reader_of_document()[0](shard.path).values())
    for row in range(len(lengths)):
        start, stop = content.row_splits[row : row + 2]
        found = {"token_ids": shard.read_token_ids(row), "spans": shard.read_spans(row)}
        for name, array in found.items():
            if name in names:
                expected = content.extras[name][start:stop]
                np.testing.assert_array_equal(array, expected, strict=True)
                np.testing.assert_array_equal(from_document[row][name], expected, strict=True)
            else:
                assert array is None
                assert name not in from_document[row]
    for row in (-1, len(lengths)):
        with pytest.raises(IndexError):
            shard.read_spans(row)


def test_read_tokens_are_the_callers(golden: Path) -> None:
    shard = Shard(golden / "dense-v2.h5")
    for read in (shard.read_spans, shard.read_token_ids):
        first = read(1)
        assert first is not None
        before = first.copy()
        first[...] = 99
        np.testing.assert_array_equal(read(1), before)


@pytest.mark.parametrize(
    ("flag", "names", "version"),
    [
        (0, [], 1),
        (1, [], 1),
        (2, [], 2),
        (3, [], 2),
        (0, ["token_ids"], 2),
        (1, ["spans"], 2),
    ],
)
def test_shard_has_the_least_version_that_can_say_it(
    tmp_path: Path, flag: int, names: list[str], version: int
) -> None:
    content = _with_tokens(_content([1, 2]), *names)
    content.flags[1] = flag
    path = _write(content, tmp_path)
    assert Shard(path).flags.tolist() == [0, flag]
    with h5py.File(path, "r") as file:
        assert file.attrs["version"] == version


def test_only_touched_blocks_of_tokens_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Texts of 5 tokens in blocks of 64 bytes: 8 spans or 16 ids a block, so texts straddle.
    for module in (image_module, shard_module):
        monkeypatch.setattr(module, "BLOCK_BYTES", 64)
    content = _with_tokens(_content([5] * 8), "spans", "token_ids")
    path = _write(content, tmp_path)
    image = path.read_bytes()
    for name, token_bytes in (("spans", 8), ("token_ids", 4)):
        expected = content.extras[name]
        with h5py.File(path, "r") as file:
            offset = file[name].id.get_offset()
        for block in range(-(-expected.nbytes // 64)):
            damaged = bytearray(image)
            damaged[offset + block * 64 + 4] ^= 1
            other = tmp_path / "damaged.h5"
            other.write_bytes(damaged)
            for row in range(8):
                shard = Shard(other)
                read = shard.read_spans if name == "spans" else shard.read_token_ids
                first, last = row * 5 * token_bytes, (row + 1) * 5 * token_bytes - 1
                if first // 64 <= block <= last // 64:
                    with pytest.raises(CorruptShardError, match=f"block {block} of '{name}'"):
                        read(row)
                else:
                    np.testing.assert_array_equal(read(row), expected[row * 5 : row * 5 + 5])
                shard.read(np.arange(8))
            with pytest.raises(CorruptShardError):
                Shard(other).verify_all()


def test_rows_straddle_blocks_and_only_touched_blocks_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Rows of 14 bytes in blocks of 64: every fourth or fifth one lies in two blocks.
    for module in (image_module, shard_module):
        monkeypatch.setattr(module, "BLOCK_BYTES", 64)
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
    for module in (image_module, shard_module):
        monkeypatch.setattr(module, "BLOCK_BYTES", 16)
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
