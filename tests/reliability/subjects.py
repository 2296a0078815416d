"""Whole shards of every kind, to be damaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from embedcache.keys import keys_of_texts
from embedcache.store.shards.codec import to_storage
from embedcache.store.store import FeatureStore, open_store
from embedcache.store.writer import WriterLimits
from embedcache.view import FeatureView
from tests.embedcache.store.programs import VIEW, matrix_of

GOLDEN = Path(__file__).parents[1] / "embedcache" / "store" / "golden"


@dataclass(frozen=True, slots=True)
class Subject:
    """A whole shard.

    Attributes:
        name: What it is.
        image: Its bytes.
        digest: Its name in a store.
        weight: How often it is damaged, compared with the others.
    """

    name: str
    image: bytes
    digest: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """How a fresh shard is made.

    Attributes:
        texts: Those in it.
        view: Their view.
        is_dictionary: Whether each distinct row is there once.
        tells_tokens: Whether it has ids, spans, and flags of all kinds.
        compression: As `WriterLimits` has it.
        weight: As `Subject` has it.
    """

    texts: Sequence[str]
    view: FeatureView = VIEW
    is_dictionary: bool = False
    tells_tokens: bool = False
    compression: str = "none"
    weight: float = 1.0

    def write(self, store: FeatureStore) -> None:
        """Put the texts into a store, in one shard."""
        store.catalog.add_view(self.view, "builtin:nothing")
        encoding = "dictionary" if self.is_dictionary else "dense"
        limits = WriterLimits(encoding=encoding, compression=self.compression)
        writer = store.writer(self.view, limits=limits)
        matrices = [matrix_of(text, self.view.dim) for text in self.texts]
        lengths = np.array([len(matrix) for matrix in matrices], np.int64)
        rows = to_storage(np.concatenate(matrices).astype(np.float32), self.view.dtype)
        keys, flags = keys_of_texts(self.texts), np.zeros(len(self.texts), np.uint8)
        tokens = {}
        if self.tells_tokens:
            flags = (np.arange(len(self.texts)) % 4).astype(np.uint8)
            places = np.arange(len(rows), dtype=np.uint32)
            tokens = {"token_ids": places, "spans": np.stack([places, places + 2], axis=1)}
        if self.is_dictionary:
            table, codes = np.unique(rows, axis=0, return_inverse=True)
            codes = codes.reshape(-1).astype(np.uint32)
            writer.add_codes(keys, lengths, flags, codes=codes, table=table, **tokens)
        else:
            writer.add_values(keys, lengths, flags, values=rows, **tokens)
        writer.flush()


def make_subjects(folder: Path) -> list[Subject]:
    """The golden shards, and fresh ones as a store writes them today."""
    can_compress = find_spec("hdf5plugin") is not None
    golden = [
        Subject(f"golden {path.stem}", path.read_bytes(), path.stem)
        for path in sorted(GOLDEN.glob("*.h5"))
        if can_compress or "zstd" not in path.stem
    ]
    fresh = [
        _fresh(folder / name, name, kind)
        for name, kind in _fresh_kinds().items()
        if can_compress or kind.compression == "none"
    ]
    return golden + fresh


def _fresh(folder: Path, name: str, kind: _Kind) -> Subject:
    with open_store(folder) as store:
        kind.write(store)
        (record,) = store.catalog.shards()
        path = store.layout.shard_path(record.view, record.digest)
    return Subject(name, path.read_bytes(), record.digest, kind.weight)


def _fresh_kinds() -> dict[str, _Kind]:
    texts = [f"text {number}" for number in range(900)]
    empty = [text for text in texts if len(matrix_of(text)) == 0]
    wide, wider = replace(VIEW, dim=48), replace(VIEW, dim=2048)
    return {
        "one text": _Kind(texts=texts[:1]),
        "dense": _Kind(texts=texts[:60]),
        "dictionary": _Kind(texts=texts[:60], is_dictionary=True),
        "ids and spans": _Kind(texts=texts[:30], tells_tokens=True),
        "dictionary, ids and spans": _Kind(texts=texts[:30], is_dictionary=True, tells_tokens=True),
        "empty texts": _Kind(texts=empty[:5]),
        "float32": _Kind(texts=texts[:40], view=replace(VIEW, dtype="float32")),
        "bfloat16": _Kind(texts=texts[:40], view=replace(VIEW, dtype="bfloat16")),
        "int8": _Kind(texts=texts[:40], view=replace(VIEW, dtype="int8")),
        "int8 dictionary": _Kind(
            texts=texts[:40], view=replace(VIEW, dtype="int8"), is_dictionary=True
        ),
        "zstd": _Kind(texts=texts[:60], compression="zstd", tells_tokens=True),
        "zstd dictionary": _Kind(texts=texts[:60], compression="zstd", is_dictionary=True),
        "zstd int8": _Kind(texts=texts[:60], view=replace(wide, dtype="int8"), compression="zstd"),
        "100 KB": _Kind(texts=texts[:400], view=wide, weight=0.5),
        # Its rows take two blocks, with a checksum each.
        "two blocks": _Kind(texts=texts, view=wider, weight=0.01),
    }
