"""Texts in one shard or several: coded ahead or copied, as the shards allow; always the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import ModuleType

import h5py
import numpy as np
import pytest

from embedcache.errors import CorruptShardError
from embedcache.keys import keys_of_texts
from embedcache.store import ahead
from embedcache.store.ahead import CodedTexts, CopiedTexts
from embedcache.store.reader import ViewReader
from embedcache.store.shards.codec import to_storage
from embedcache.store.store import FeatureStore
from embedcache.store.writer import WriterLimits
from embedcache.stream import FeatureStream, StreamConfig

# Enough that datasets begin at pages, codes too: only these are copied text by text.
TEXTS = [f"text {number}" for number in range(1500)]
PARTS = (TEXTS[:500], TEXTS[500:1000], TEXTS[1000:])


def _prepare(reader: ViewReader, texts: Sequence[str]) -> object:
    """What texts that are padded to 64 tokens are read with."""
    return reader.prepare(reader.locate(keys_of_texts(texts)), np.full(len(texts), 64))


LAYOUTS = {
    "a dictionary": (("dictionary",), CodedTexts),
    "a shard of rows": (("dense",), type(None)),
    "dictionaries": (("dictionary", "dictionary", "dictionary"), CodedTexts),
    "dense": (("dense", "dense", "dense"), CopiedTexts),
    "mixed": (("dense", "dictionary", "dense"), CopiedTexts),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_batches_are_the_same_whatever_the_shards(
    store: FeatureStore, programs: ModuleType, register: Callable[..., None], layout: str
) -> None:
    encodings, prepared = LAYOUTS[layout]
    parts = PARTS if len(encodings) > 1 else [TEXTS]
    for part, encoding in zip(parts, encodings, strict=True):
        programs.put(store, part, encoding=encoding)
    register("several", TEXTS)
    stream = FeatureStream(store, "several", batch_size=100)
    for epoch in range(3):  # in the first one the blocks are compared with their checksums
        for batch in stream.epoch(epoch):
            for row, length, matrix in zip(batch.rows, batch.lengths, batch.values, strict=True):
                expected = programs.matrix_of(TEXTS[row])
                np.testing.assert_array_equal(matrix[:length], expected, strict=True)
                assert not matrix[length:].any()
    reader = store.reader(programs.VIEW)
    assert type(_prepare(reader, TEXTS)) is prepared


@pytest.mark.parametrize("cells", [1, 1000, 1 << 30])
@pytest.mark.parametrize("layout", ["a dictionary", "dictionaries"])
def test_codes_are_the_same_however_many_are_padded_at_once(
    store: FeatureStore,
    programs: ModuleType,
    register: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    layout: str,
    cells: int,
) -> None:
    for part in [TEXTS] if layout == "a dictionary" else PARTS:
        programs.put(store, part, encoding="dictionary")
    register("several", TEXTS)
    stream = FeatureStream(store, "several", config=StreamConfig(batch_tokens=700))
    expected = list(stream.epoch(0))
    monkeypatch.setattr(ahead, "_CELLS_AHEAD", cells)
    for found, batch in zip(stream.epoch(0), expected, strict=True):
        np.testing.assert_array_equal(found.values, batch.values, strict=True)
    for found, batch in zip(stream.epoch(0, first_step=2), expected[2:], strict=True):
        np.testing.assert_array_equal(found.values, batch.values, strict=True)


def test_batches_may_be_asked_for_in_any_order(store: FeatureStore, programs: ModuleType) -> None:
    programs.put(store, TEXTS, encoding="dictionary")
    reader = store.reader(programs.VIEW)
    refs = reader.locate(keys_of_texts(TEXTS))
    prepared = reader.prepare(refs, np.full(len(TEXTS), 64))
    assert prepared is not None
    for start in (1400, 0, 700, 50, 0):
        texts = slice(start, start + 50)
        found, expected = (np.ones((50, 64, reader.view.dim), reader.dtype) for _ in range(2))
        prepared.gather_padded(texts, found)
        reader.gather_padded(refs, expected, texts=texts)
        np.testing.assert_array_equal(found, expected)


def test_of_long_texts_no_codes_are_brought_together(
    store: FeatureStore, programs: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "_CODES_AHEAD", 100)
    programs.put(store, TEXTS, encoding="dictionary")
    assert _prepare(store.reader(programs.VIEW), TEXTS) is None


def test_dictionaries_that_are_too_large_are_not_joined(
    store: FeatureStore,
    programs: ModuleType,
    register: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ahead, "MAX_JOINED_BYTES", 100)
    for part in PARTS:
        programs.put(store, part, encoding="dictionary")
    register("several", TEXTS)
    stream = FeatureStream(store, "several", batch_size=100)
    for epoch in range(2):
        for batch in stream.epoch(epoch):
            for row, length, matrix in zip(batch.rows, batch.lengths, batch.values, strict=True):
                expected = programs.matrix_of(TEXTS[row])
                np.testing.assert_array_equal(matrix[:length], expected, strict=True)
    reader = store.reader(programs.VIEW)
    assert type(_prepare(reader, TEXTS)) is CopiedTexts


@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
@pytest.mark.parametrize("encoding", ["dense", "dictionary"])
def test_rows_that_are_widened_are_the_same_from_several_shards(
    store: FeatureStore,
    programs: ModuleType,
    register: Callable[..., None],
    dtype: str,
    encoding: str,
) -> None:
    view = replace(programs.VIEW, dtype=dtype)
    store.catalog.add_view(view, "x")
    for part in PARTS:
        writer = store.writer(view, limits=WriterLimits(encoding=encoding))
        matrices = [programs.matrix_of(text).astype(np.float32) for text in part]
        lengths, flags = np.array([len(m) for m in matrices]), np.zeros(len(part), np.bool_)
        rows = to_storage(np.concatenate(matrices), dtype)
        if encoding == "dense":
            writer.add_values(keys_of_texts(part), lengths, flags, values=rows)
        else:
            table, codes = np.unique(rows, axis=0, return_inverse=True)
            flat = codes.reshape(-1).astype(np.uint32)
            writer.add_codes(keys_of_texts(part), lengths, flags, codes=flat, table=table)
        writer.flush()
    register("several", TEXTS)
    stream = FeatureStream(store, "several", view=view.fingerprint, batch_size=16)
    stored = store.get(view, TEXTS)
    for batch in [*stream.epoch(0), *stream.epoch(1)]:
        for row, length, matrix in zip(batch.rows, batch.lengths, batch.values, strict=True):
            np.testing.assert_array_equal(matrix[:length], stored[row], strict=True)
            assert not matrix[length:].any()


@pytest.mark.parametrize("shuffle", ["full", "block"])
def test_damage_in_one_of_several_dictionaries_is_refused(
    store: FeatureStore, programs: ModuleType, register: Callable[..., None], shuffle: str
) -> None:
    for part in PARTS:
        programs.put(store, part, encoding="dictionary")
    register("several", TEXTS)
    record = store.catalog.shards()[1]
    path = store.layout.shard_path(record.view, record.digest)
    stream = FeatureStream(store, "several", config=StreamConfig(shuffle=shuffle))
    assert len(list(stream)) == 24
    store.close()
    with h5py.File(path, "r+") as file:
        file["dictionary"][0, 0] += 1
    with pytest.raises(CorruptShardError, match="is not what was written"):
        list(FeatureStream(store, "several", config=StreamConfig(shuffle=shuffle)))
