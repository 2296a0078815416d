"""What cannot be mapped: compressed shards, and file systems without maps."""

from __future__ import annotations

import errno
import mmap
import os
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import embedcache.store.shards.blocks as blocks_module
import embedcache.store.shards.image as image_module
import embedcache.store.shards.shard as shard_module
import embedcache.store.shards.structure as structure_module
from embedcache.errors import CorruptShardError, StoreError
from embedcache.keys import keys_of_texts, sort_order
from embedcache.ragged import splits_of_lengths
from embedcache.store.shards.blocks import KEPT_BLOCKS, BlockRows, unpacked_bytes
from embedcache.store.shards.codec import STORAGE_DTYPES, split_scales, to_storage
from embedcache.store.shards.image import ShardContent
from embedcache.store.shards.padding import PaddedPositions
from embedcache.store.shards.shard import Shard
from embedcache.store.shards.structure import DatasetPlace
from embedcache.view import FeatureView

DTYPES = tuple(STORAGE_DTYPES)
LENGTHS = [5, 0, 1, 7, 3, 0, 12, 2, 9, 4] * 6
DIM = 7


def make_content(
    dtype: str, encoding: str, compression: str = "none", *, dim: int = DIM
) -> ShardContent:
    """Texts of random rows, with token ids and spans."""
    view = FeatureView(
        module_digest="0" * 32, signature="__call__", tokenizer="module", dim=dim, dtype=dtype
    )
    rng = np.random.default_rng(5)
    num_tokens = sum(LENGTHS)
    num_rows = num_tokens if encoding == "dense" else 23
    stored = to_storage(rng.normal(size=(num_rows, dim)).astype(np.float32), dtype)
    name = "values" if encoding == "dense" else "dictionary"
    rows: dict[str, Any] = {name: stored}
    if dtype == "int8":
        rows[name], rows["scales"] = split_scales(stored)
    if encoding == "dictionary":
        rows["codes"] = rng.integers(0, num_rows, num_tokens).astype("<u4")
    numbers = np.arange(num_tokens, dtype="<u4")
    extras = {"token_ids": numbers * 3, "spans": np.stack([numbers, numbers + 2], axis=1)}
    keys = keys_of_texts([str(number) for number in range(len(LENGTHS))])
    flags = np.zeros(len(LENGTHS), np.uint8)
    splits = splits_of_lengths(LENGTHS)
    return ShardContent(view, keys[sort_order(keys)], splits, flags, rows, extras, compression)


def write(content: ShardContent, path: Path) -> Path:
    path.write_bytes(content.image())
    return path


def refuse_maps(monkeypatch: pytest.MonkeyPatch, *accesses: int, error: int = errno.ENODEV) -> None:
    """Let the file system refuse to map, as some network file systems do."""
    real = mmap.mmap

    def refuse(descriptor: int, length: int, access: int) -> mmap.mmap:
        if access in accesses:
            raise OSError(error, os.strerror(error))
        return real(descriptor, length, access=access)

    monkeypatch.setattr(mmap, "mmap", refuse)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 64 bytes, so that rows straddle them, and chunks of as many rows as fit."""
    for module in (image_module, shard_module, structure_module):
        monkeypatch.setattr(module, "BLOCK_BYTES", 64)


def everything(shard: Shard) -> list[bytes]:
    """All that a shard gives, in every way that it gives it."""
    positions = np.random.default_rng(0).permutation(shard.num_tokens)
    starts, lengths = shard.row_splits[:-1], np.diff(shard.row_splits)
    dtype = shard.take(positions[:0]).dtype
    padded = np.full((len(shard), 16, shard.view.dim), 77, dtype)
    shard.gather_padded(starts, lengths, padded, positions=PaddedPositions())
    found = [shard.keys, shard.row_splits, shard.flags, shard.take(positions), padded]
    found += [shard.take_stored(positions), shard.read(np.array([3, 1, 3])).values]
    if shard.is_dictionary:
        found += [shard.codes(positions), shard.stored_dictionary()]
    for row in range(len(shard)):
        for array in (shard.read_spans(row), shard.read_token_ids(row)):
            assert array is not None
            found.append(array)
    return [array.dtype.str.encode() + array.tobytes() for array in found]


@pytest.mark.parametrize("encoding", ["dense", "dictionary"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_small", [True, False])
def test_shard_gives_the_same_however_it_is_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    dtype: str,
    encoding: str,
    is_small: bool,
) -> None:
    if is_small:
        request.getfixturevalue("small_blocks")
    plain = write(make_content(dtype, encoding), tmp_path / "plain.h5")
    packed = write(make_content(dtype, encoding, "zstd"), tmp_path / "packed.h5")
    mapped = Shard(plain)
    expected = everything(mapped)
    with monkeypatch.context() as context:
        refuse_maps(context, mmap.ACCESS_COPY)
        assert everything(Shard(plain)) == expected, "a map that may not be written to"
    shards = {"packed": Shard(packed)}
    with monkeypatch.context() as context:
        refuse_maps(context, mmap.ACCESS_COPY, mmap.ACCESS_READ)
        shards |= {"unmapped": Shard(plain), "packed and unmapped": Shard(packed)}
    assert shards["unmapped"].digest == mapped.digest
    for how, shard in shards.items():
        assert everything(shard) == expected, how
        assert everything(shard) == expected, f"{how}, from what was kept"
        shard.verify_all()


@pytest.mark.parametrize("how", ["mapped", "unmapped", "packed"])
def test_shard_that_is_open_is_read_on_when_its_file_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    content = make_content("float16", "dense", "zstd" if how == "packed" else "none")
    path = write(content, tmp_path / "shard.h5")
    expected = everything(Shard(path))
    if how == "unmapped":
        refuse_maps(monkeypatch, mmap.ACCESS_COPY, mmap.ACCESS_READ)
    shard = Shard(path)
    path.unlink()
    assert everything(shard) == expected


def test_the_zeros_of_the_map_are_its_own(tmp_path: Path) -> None:
    path = write(make_content("float16", "dense"), tmp_path / "shard.h5")
    before = path.read_bytes()
    shard = Shard(path)
    everything(shard)
    assert shard._mapped is not None
    assert bytes(shard._mapped.buffer[:8]) == bytes(8)
    assert path.read_bytes() == before
    for array in (shard.keys, shard.row_splits, shard.flags):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


@pytest.mark.parametrize("how", ["unmapped", "packed"])
@pytest.mark.usefixtures("small_blocks")
def test_threads_read_what_is_not_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    content = make_content("float16", "dense", "zstd" if how == "packed" else "none")
    path = write(content, tmp_path / "shard.h5")
    if how == "unmapped":
        refuse_maps(monkeypatch, mmap.ACCESS_COPY, mmap.ACCESS_READ)
    shard = Shard(path)
    barrier = threading.Barrier(4)

    def read(seed: int) -> bool:
        barrier.wait()
        positions = np.random.default_rng(seed).integers(0, shard.num_tokens, (50, 20))
        rows = content.rows["values"]
        assert isinstance(rows, np.ndarray)
        return all(np.array_equal(shard.take(some), rows[some]) for some in positions)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(4)))


@pytest.mark.parametrize("how", ["unmapped", "packed"])
@pytest.mark.usefixtures("small_blocks")
def test_one_changed_number_is_refused_when_its_block_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    content = make_content("float16", "dense", "zstd" if how == "packed" else "none")
    path = write(content, tmp_path / "shard.h5")
    with h5py.File(path, "r+") as file:
        file["values"][100, 3] += 1
        offset = 100 * DIM * 2
    if how == "unmapped":
        refuse_maps(monkeypatch, mmap.ACCESS_COPY, mmap.ACCESS_READ)
    shard = Shard(path)
    shard.take(np.arange(90))
    for read in (
        lambda: shard.take(np.array([100])),
        shard.verify_all,
        lambda: shard.read(np.arange(len(shard))),
    ):
        with pytest.raises(CorruptShardError, match=f"block {offset // 64} of 'values'") as caught:
            read()
        assert "\n" not in str(caught.value)


def chunk_of(path: Path, name: str, number: int = 0) -> Any:
    with h5py.File(path, "r") as file:
        return file[name].id.get_chunk_info(number)


def test_packed_bytes_that_are_not_what_was_written_are_refused(tmp_path: Path) -> None:
    path = write(make_content("float16", "dense", "zstd"), tmp_path / "shard.h5")
    image = path.read_bytes()
    chunk = chunk_of(path, "values")
    num_refused = 0
    for position in range(chunk.byte_offset, chunk.byte_offset + chunk.size, 7):
        damaged = bytearray(image)
        damaged[position] ^= 8
        path.write_bytes(damaged)
        with pytest.raises(CorruptShardError) as caught:
            Shard(path).take(np.array([0]))
        assert "\n" not in str(caught.value)
        num_refused += 1
    assert num_refused > 100


def pack_with(path: Path, packed: bytes) -> Path:
    """A copy of a shard with other packed bytes in the place of the values' only chunk."""
    copy = path.with_name(f"{len(list(path.parent.iterdir()))}.h5")
    copy.write_bytes(path.read_bytes())
    with h5py.File(copy, "r+") as file:
        file["values"].id.write_direct_chunk((0, 0), packed)
    return copy


def frame(claimed: int, payload: bytes) -> bytes:
    """A Zstandard frame of one raw block that claims to become so many bytes."""
    header = b"\x28\xb5\x2f\xfd" + bytes([0xE0]) + struct.pack("<Q", claimed)
    return header + (len(payload) << 3 | 1).to_bytes(3, "little") + payload


def test_chunk_that_claims_to_become_too_large_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = make_content("float16", "dense", "zstd")
    rows = content.rows["values"]
    assert isinstance(rows, np.ndarray)
    path = write(content, tmp_path / "shard.h5")
    fitting = pack_with(path, frame(rows.nbytes, rows.tobytes()))
    np.testing.assert_array_equal(Shard(fitting).take(np.arange(9)), rows[:9])

    def unpack(*_: object) -> None:
        raise AssertionError("it was unpacked")

    monkeypatch.setattr(h5py.Dataset, "read_direct", unpack)
    skippable = b"\x50\x2a\x4d\x18" + bytes(8)
    unsized = b"\x28\xb5\x2f\xfd" + bytes([0x00, 0x58])
    claims = [frame(1 << 50, b"x"), frame(rows.nbytes - 1, b"x"), skippable, unsized, b"x"]
    for packed in claims:
        with pytest.raises(CorruptShardError, match="does not become") as caught:
            Shard(pack_with(path, packed)).take(np.array([0]))
        assert "\n" not in str(caught.value)


def test_chunk_that_becomes_more_than_it_claims_is_refused(tmp_path: Path) -> None:
    content = make_content("float16", "dense", "zstd")
    rows = content.rows["values"]
    assert isinstance(rows, np.ndarray)
    path = write(content, tmp_path / "shard.h5")
    # Other rows: what the filter leaves unwritten may hold what was there before.
    wrong = (rows + 1).tobytes()
    for payload in (wrong + bytes(1000), wrong[:-2]):
        forged = pack_with(path, frame(rows.nbytes, payload))
        with pytest.raises(CorruptShardError, match=r"cannot be read|not what was written"):
            Shard(forged).take(np.array([0]))


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        # Descriptor, window, dictionary and content size, by section 3.1.1.1 of RFC 8878.
        ("28b52ffd 20 09", 9),
        ("28b52ffd 60 0001", 512),
        ("28b52ffd a0 78563412", 0x12345678),
        ("28b52ffd e0 0807060504030201", 0x0102030405060708),
        ("28b52ffd 80 58 78563412", 0x12345678),
        ("28b52ffd a1 aa 78563412", 0x12345678),
        ("28b52ffd a3 aabbccdd 78563412", 0x12345678),
        ("28b52ffd 83 58 aabbccdd 78563412", 0x12345678),
        ("28b52ffd 00 58", None),
        ("28b52ffd a0 785634", None),
        ("28b52ffd", None),
        ("502a4d18 04000000 00000000", None),
        ("00", None),
    ],
)
def test_size_that_a_frame_claims_is_read_from_its_header(
    header: str, expected: int | None
) -> None:
    assert unpacked_bytes(bytes.fromhex(header)) == expected


def test_without_the_package_that_unpacks_the_message_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(make_content("float16", "dense", "zstd"), tmp_path / "shard.h5")

    def is_missing(name: str) -> None:
        raise ImportError(name)

    with monkeypatch.context() as context:
        context.setattr(h5py.h5z, "filter_avail", lambda _: False)
        context.setattr(blocks_module, "import_module", is_missing)
        shard = Shard(path)
        assert len(shard.keys) == len(LENGTHS)
        with pytest.raises(StoreError, match=r"pip install 'embedcache\[zstd\]'") as caught:
            shard.take(np.array([0]))
    assert not isinstance(caught.value, CorruptShardError)
    assert "\n" not in str(caught.value)
    assert hdf5plugin.version
    assert shard.take(np.array([0])).shape == (1, DIM), "once it is there, the same shard is read"


@given(
    row_bytes=st.integers(1, 40),
    num_rows=st.integers(1, 60),
    block_bytes=st.integers(1, 64),
    asked=st.lists(st.integers(0, 10_000), max_size=40),
)
def test_rows_are_those_of_the_array_however_blocks_cut_them(
    row_bytes: int, num_rows: int, block_bytes: int, asked: list[int]
) -> None:
    array = np.random.default_rng(0).integers(0, 256, (num_rows, row_bytes)).astype(np.uint8)
    raw = array.reshape(-1)
    loaded: list[int] = []

    def load(_name: str, block: int) -> np.ndarray[Any, Any]:
        loaded.append(block)
        return raw[block * block_bytes : (block + 1) * block_bytes]

    places = {"values": DatasetPlace(0, array.shape, array.dtype)}
    rows = BlockRows(places, load, block_bytes=block_bytes)
    positions = np.array(asked, np.int64) % num_rows
    np.testing.assert_array_equal(rows.take("values", positions), array[positions], strict=True)
    bounds = sorted([*asked, 0, 0])[-2:]
    found = rows.read("values", *bounds)
    np.testing.assert_array_equal(found, array[slice(*bounds)], strict=True)
    touched = {
        byte // block_bytes
        for position in positions.tolist()
        for byte in (position * row_bytes, (position + 1) * row_bytes - 1)
    }
    assert touched <= set(loaded)
    for outside in (-1, num_rows):
        with pytest.raises(IndexError):
            rows.take("values", np.array([0, outside]))


def test_only_the_last_blocks_are_kept() -> None:
    loaded: list[int] = []

    def load(_name: str, block: int) -> np.ndarray[Any, Any]:
        loaded.append(block)
        return np.full(4, block, np.uint8)

    num_blocks = KEPT_BLOCKS + 3
    place = DatasetPlace(0, (num_blocks * 4,), np.dtype(np.uint8))
    rows = BlockRows({"values": place}, load, block_bytes=4)
    for block in range(num_blocks):
        assert rows.take("values", np.array([block * 4])).tolist() == [block]
    assert loaded == list(range(num_blocks))
    rows.take("values", np.array([(num_blocks - 1) * 4]))
    rows.take("values", np.array([3 * 4]))
    assert len(loaded) == num_blocks
    rows.take("values", np.array([0]))
    assert loaded[num_blocks:] == [0]


def test_shard_is_not_blamed_when_there_is_no_memory_for_a_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(make_content("float16", "dense"), tmp_path / "shard.h5")
    expected = everything(Shard(path))
    refuse_maps(monkeypatch, mmap.ACCESS_COPY, mmap.ACCESS_READ, error=errno.ENOMEM)
    assert everything(Shard(path)) == expected
    refuse_maps(monkeypatch, mmap.ACCESS_COPY, error=errno.EMFILE)
    with pytest.raises(StoreError, match="Too many open files") as caught:
        Shard(path)
    assert not isinstance(caught.value, CorruptShardError)
