"""Texts in several shards: joined or copied, whichever the shards allow, and always the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import h5py
import numpy as np
import pytest

from embedcache.errors import CorruptShardError
from embedcache.keys import keys_of_texts
from embedcache.store import ahead
from embedcache.store.ahead import CopiedTexts, JoinedTexts
from embedcache.store.shards.codec import to_storage
from embedcache.store.store import FeatureStore
from embedcache.store.writer import WriterLimits
from embedcache.stream import FeatureStream, StreamConfig

# Enough that datasets begin at pages, codes too: only these are copied text by text.
TEXTS = [f"text {number}" for number in range(1500)]
PARTS = (TEXTS[:500], TEXTS[500:1000], TEXTS[1000:])

LAYOUTS = {
    "dictionaries": (("dictionary", "dictionary", "dictionary"), JoinedTexts),
    "dense": (("dense", "dense", "dense"), CopiedTexts),
    "mixed": (("dense", "dictionary", "dense"), CopiedTexts),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_batches_are_the_same_whatever_the_shards(
    store: FeatureStore, programs: ModuleType, register: Callable[..., None], layout: str
) -> None:
    encodings, prepared = LAYOUTS[layout]
    for part, encoding in zip(PARTS, encodings, strict=True):
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
    assert type(reader.prepare(reader.locate(keys_of_texts(TEXTS)))) is prepared
    assert reader.prepare(reader.locate(keys_of_texts(PARTS[1]))) is None


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
    assert type(reader.prepare(reader.locate(keys_of_texts(TEXTS)))) is CopiedTexts


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
