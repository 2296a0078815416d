"""What a build would do: ``build --dry-run``. Nothing is written to the store."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedcache.corpus import CorpusReader, DocumentBatch, Source
from embedcache.errors import NotAStoreError
from embedcache.keys import KEY_BYTES, Keys, keys_of_utf8
from embedcache.pinning import pin_module
from embedcache.precompute import BuildOptions
from embedcache.store.dataset import count_unique
from embedcache.store.publish import mapped_os_errors
from embedcache.store.reader import ViewReader
from embedcache.store.shards.codec import STORAGE_DTYPES, row_width
from embedcache.store.store import open_store
from embedcache.view import FeatureView

_SAMPLE_TEXTS = 20_000
_HEAPS_EXPONENT = 0.6
"""Heaps' law: a text of n tokens has about K·n^β distinct ones, β from 0.4 to 0.6 for English
(Manning, Raghavan and Schütze, Introduction to Information Retrieval, 5.1.1): the high end."""
_BYTES_PER_TEXT = KEY_BYTES + 8 + 1


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """What a build would do: ``build --dry-run --json``.

    Attributes:
        store: The store's folder.
        view: Fingerprint of the view.
        module: The module's handle.
        texts: Documents in the corpus.
        unique: Distinct texts among them.
        hits: Distinct texts that the store has.
        misses: Distinct texts that would be computed.
        tokens: About how many rows that makes; the module itself is not asked.
        bytes: About how much the shards would take.
        free_bytes: Free space on the store's device.
    """

    store: str
    view: str
    module: str
    texts: int
    unique: int
    hits: int
    misses: int
    tokens: int
    bytes: int
    free_bytes: int

    def to_record(self) -> dict[str, Any]:
        """As a dict of JSON values."""
        return asdict(self)


def plan_build(
    path: Path, sources: Sequence[Source], *, module: str, options: BuildOptions
) -> BuildPlan:
    """Read a corpus and count what a build would have to compute.

    Args:
        path: The store's folder; it need not be there.
        sources: The corpus's files; standard input is used up by this.
        module: The module's handle.
        options: As the build would have them.

    Raises:
        CorpusError: as the build would.
        ModuleError: as the build would.
        StoreError: if there is something at ``path`` that is not a usable store.
    """
    corpus = CorpusReader(sources, options.corpus)
    _ = corpus.bytes_total  # a file that is not there is told before the module is looked at
    store = None if _is_new(path) else open_store(path, create=False)
    catalog = store.catalog if store else None
    pinned = pin_module(catalog, module, preprocess=options.preprocess, keep=False)
    view = pinned.view(options.view_settings)
    reader = store.reader(view) if store else None
    counts = _count(corpus, reader, view)
    if store:
        store.close()
    return BuildPlan(
        store=str(path.absolute()),
        view=view.fingerprint,
        module=pinned.handle,
        free_bytes=shutil.disk_usage(_existing_parent(path)).free,
        **counts,
    )


def _count(corpus: CorpusReader, reader: ViewReader | None, view: FeatureView) -> dict[str, int]:
    sample = _TokenSample()
    with _KeySpool() as every, _KeySpool() as missing:
        for batch in corpus:
            keys = keys_of_utf8(batch.texts)
            absent = np.ones(len(keys), np.bool_) if reader is None else ~reader.contains(keys)
            every.add(keys)
            missing.add(keys[absent])
            sample.add(batch, np.flatnonzero(absent).tolist())
        texts, unique, misses = every.length, every.count_unique(), missing.count_unique()
    tokens = round(sample.tokens_per_text * misses)
    return {
        "texts": texts,
        "unique": unique,
        "hits": unique - misses,
        "misses": misses,
        "tokens": tokens,
        "bytes": sample.estimate_bytes(tokens, view) + _BYTES_PER_TEXT * misses,
    }


class _KeySpool:
    """Keys in an unnamed file, so that counting distinct ones takes no memory to speak of."""

    def __enter__(self) -> _KeySpool:
        self._file = tempfile.TemporaryFile()
        self.length = 0
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, keys: Keys) -> None:
        self._file.write(keys.tobytes())
        self.length += len(keys)

    def count_unique(self) -> int:
        self._file.flush()
        if self.length == 0:
            return 0
        shape = (self.length, KEY_BYTES)
        return count_unique(np.memmap(self._file, np.uint8, mode="r", shape=shape))


class _TokenSample:
    """Counts words and punctuation marks in the first missing texts, to tell sizes ahead."""

    def __init__(self) -> None:
        self._num_texts = 0
        self._num_tokens = 0
        self._distinct: set[str] = set()

    def add(self, batch: DocumentBatch, positions: Sequence[int]) -> None:
        for position in positions[: max(0, _SAMPLE_TEXTS - self._num_texts)]:
            text = batch.texts[position].decode(errors="replace").lower()
            tokens = re.findall(r"\w+|[^\w\s]", text)
            self._num_texts += 1
            self._num_tokens += len(tokens)
            self._distinct.update(tokens)

    @property
    def tokens_per_text(self) -> float:
        return self._num_tokens / max(1, self._num_texts)

    def estimate_bytes(self, num_tokens: int, view: FeatureView) -> int:
        """The smaller of a row a token and a dictionary with a code a token."""
        growth = max(1.0, num_tokens / max(1, self._num_tokens)) ** _HEAPS_EXPONENT
        row_bytes = row_width(view.dim, view.dtype) * STORAGE_DTYPES[view.dtype].itemsize
        distinct = int(len(self._distinct) * growth)
        return min(num_tokens * row_bytes, 4 * num_tokens + distinct * row_bytes)


def _is_new(path: Path) -> bool:
    """Whether a build would make the store; raises `NotAStoreError` where it could not."""
    above = _existing_parent(path)
    if not above.is_dir():
        raise NotAStoreError(f"{path.absolute()}: {above} is a file; name a folder for the store")
    with mapped_os_errors(path):
        return above != path.absolute() or not any(path.iterdir())


def _existing_parent(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
