"""The precompute stage: every text of a corpus through the module once, ever.

    corpus → keys → misses → module → shards

The corpus streams by; what is kept of it in memory is one buffer of missing texts and the
open shard. A text whose key the store has, or that stood earlier in the corpus, costs one
hash and one look-up. TensorFlow is imported at the first miss.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from embedcache.compute.batches import BATCH_TOKENS_DEFAULT
from embedcache.compute.choosing import make_computer
from embedcache.compute.fidelity import Fidelity
from embedcache.compute.missing import ComputeCounts, Computer, MissingTexts
from embedcache.corpus import CorpusOptions, CorpusReader, DocumentBatch, Source, sources_of
from embedcache.errors import CorpusError, FidelityError, StoreError
from embedcache.keys import KEY_BYTES, Keys, keys_of_utf8, utf8_of_text
from embedcache.modules.handles import DEFAULT_HANDLE
from embedcache.modules.settings import ViewSettings
from embedcache.pinning import PinnedModule, pin_module, pin_module_of_view
from embedcache.ragged import RaggedArray
from embedcache.store.dataset import DatasetWriter
from embedcache.store.records import DatasetRecord, ViewRecord
from embedcache.store.store import FeatureStore
from embedcache.store.writer import WriterLimits
from embedcache.view import MAX_TOKENS_DEFAULT, FeatureView

MAX_NAME_LENGTH = 255

Corpus = str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]] | Sequence[Source]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What a build may be told beyond its corpus and module.

    Attributes:
        preprocess: Handle of the preprocessor, for an encoder of word pieces; None: the one
            that is known for it.
        granularity: ``"token"``, ``"sentence"`` or ``"window"``; None: what suits the module.
        layer: ``"3"``, ``"3,4"``, ``"mean"``, ``"all"``, a name; None: the module's output.
        keep_special_tokens: Whether rows of special tokens such as ``[CLS]`` are kept.
        context_words: With ``granularity="window"``: words on either side; None: 2.
        max_tokens: Rows kept of a text at most; with ``overflow="window"`` the longest window.
        overflow: ``"truncate"``, ``"error"`` or ``"window"`` for a longer one.
        dtype: Storage dtype, ``"float16"`` or ``"float32"``.
        batch_tokens: Tokens that go through a contextual module at once, padding included;
            it changes no number.
        limits: When shards close, and how rows are laid out in them.
        corpus: How files are read.
    """

    preprocess: str | None = None
    granularity: str | None = None
    layer: str | None = None
    keep_special_tokens: bool = False
    context_words: int | None = None
    max_tokens: int = MAX_TOKENS_DEFAULT
    overflow: str = "truncate"
    dtype: str = "float16"
    batch_tokens: int = BATCH_TOKENS_DEFAULT
    limits: WriterLimits = field(default_factory=WriterLimits)
    corpus: CorpusOptions = field(default_factory=CorpusOptions)

    @property
    def view_settings(self) -> ViewSettings:
        """Those of them that are part of the view."""
        return ViewSettings(
            **{item.name: getattr(self, item.name) for item in fields(ViewSettings)}
        )


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build did: ``build --json``.

    Attributes:
        dataset: The name that the corpus was registered under.
        version: Its version: the digest of its content.
        view: Fingerprint of the view.
        module: The module's handle.
        texts: Documents in the corpus.
        unique: Distinct texts among them.
        hits: Distinct texts that the store had before.
        misses: Distinct texts that were computed.
        tokens: Rows that were computed.
        truncated: Texts that were cut at the view's longest length, of those computed.
        windowed: Longer texts that were stitched from overlapping windows, of those computed.
        shards: Shards written.
        bytes: Their size.
        seconds: From start to end, loading the module included.
        texts_per_second: ``texts / seconds``.
        fidelity: What computing texts again, alone, has shown of the view, in this build and
            those before: ``{"texts", "max_difference"}``.
    """

    dataset: str
    version: str
    view: str
    module: str
    texts: int
    unique: int
    hits: int
    misses: int
    tokens: int
    truncated: int
    windowed: int
    shards: int
    bytes: int
    seconds: float
    texts_per_second: float
    fidelity: Mapping[str, Any]

    def to_record(self) -> dict[str, Any]:
        """As a dict of JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """How far a build is.

    Attributes:
        texts: Documents read.
        misses: Distinct texts that the store lacked.
        waiting: Those of them that are yet to be computed.
        bytes_read: Of the corpus's files, as they lie on disk.
        bytes_total: Of them all; None if one is standard input.
    """

    texts: int
    misses: int
    waiting: int
    bytes_read: int
    bytes_total: int | None


ProgressCallback = Callable[[BuildProgress], None]


def build(
    store: FeatureStore,
    corpus: Corpus,
    *,
    module: str = DEFAULT_HANDLE,
    dataset: str | None = None,
    options: BuildOptions | None = None,
    on_progress: ProgressCallback = lambda _progress: None,
) -> BuildReport:
    """Compute what the store lacks of a corpus, and register the corpus as a dataset.

    Args:
        store: An open store.
        corpus: A path, ``{"train": path, …}``, or sources; ``"-"`` is standard input.
        module: The module's handle.
        dataset: Name to register under; None: the first file's name up to its first dot.
        options: Everything else.
        on_progress: Called after each batch of documents.

    Raises:
        CorpusError: at the first document that cannot be read. What was computed is kept.
        ModuleError: if the module cannot be used.
        EncodingError: if a text's features cannot be stored.
        StoreError: if the store cannot be written.
    """
    started = time.monotonic()
    options = options or BuildOptions()
    sources = sources_of(corpus)
    name = default_dataset_name(sources) if dataset is None else checked_dataset_name(dataset)
    reader = CorpusReader(sources, options.corpus)
    # Asked first: a file that is not there is told before the module takes its time to load.
    bytes_total = reader.bytes_total
    pinned, view = open_view(store, module, options)

    def show() -> None:
        on_progress(
            BuildProgress(
                len(documents), misses.num_texts, misses.num_waiting, reader.bytes_read, bytes_total
            )
        )

    with (
        DatasetWriter(store.layout.tmp) as documents,
        MissComputer(store, pinned, view, options=options, on_part=show) as misses,
    ):
        for batch in reader:
            keys = keys_of_utf8(batch.texts)
            documents.add(keys, batch.labels, batch.splits, batch.ids)
            misses.add(keys, batch)
            show()
        misses.finish()
        version, num_unique = documents.finish()
        documents.publish(store.layout.dataset_path(version))
    provenance = _provenance(sources, reader.digests)
    record = DatasetRecord(name, version, len(documents), num_unique, provenance, created_at=0.0)
    checked = store.catalog.find_view(view.fingerprint)
    report = _report(record, misses, pinned, checked, seconds=time.monotonic() - started)
    store.catalog.add_dataset(record, view=view.fingerprint, report=report.to_record())
    return report


def _provenance(sources: Sequence[Source], digests: Mapping[str, str]) -> list[dict[str, Any]]:
    """The corpus's files with their splits and digests, as the catalog keeps them."""
    return [
        {"path": source.path, "split": source.split, "digest": digests[source.path]}
        for source in sources
    ]


def _report(
    record: DatasetRecord,
    misses: MissComputer,
    pinned: PinnedModule,
    view: ViewRecord,
    *,
    seconds: float,
) -> BuildReport:
    return BuildReport(
        dataset=record.name,
        version=record.version,
        view=view.fingerprint,
        module=pinned.handle,
        texts=record.num_documents,
        unique=record.num_unique,
        hits=record.num_unique - misses.num_texts,
        misses=misses.num_texts,
        tokens=misses.counts.tokens,
        truncated=misses.counts.truncated,
        windowed=misses.counts.windowed,
        shards=len(misses.published_bytes),
        bytes=sum(misses.published_bytes),
        seconds=round(seconds, 3),
        texts_per_second=round(record.num_documents / max(seconds, 1e-9), 1),
        fidelity={"texts": view.checked_texts, "max_difference": view.max_difference},
    )


def embed(store: FeatureStore, view: str, texts: Sequence[str]) -> RaggedArray:
    """The features of texts; those that are missing are computed and kept.

    Args:
        store: An open store.
        view: Fingerprint of a view of the store, or its beginning.
        texts: n texts.

    Returns:
        n matrices of the view's storage dtype, in the order of the texts.

    Raises:
        ModuleChangedError: if the module's files are not those the view was made with.
        CorpusError: if a text has a lone surrogate.
        UnknownNameError: if the store does not know the view.
    """
    record = store.catalog.find_view(view)
    encoded = [utf8_of_text(text) for text in texts]
    keys = keys_of_utf8(encoded)
    if not store.reader(record).contains(keys).all():
        pinned = pin_module_of_view(store.catalog, record)
        batch = DocumentBatch(
            Source("texts", None), encoded, None, None, None, range(1, len(texts) + 1)
        )
        with MissComputer(store, pinned, record.view) as misses:
            misses.add(keys, batch)
            misses.finish()
    return store.get(record.view, texts)


def open_view(
    store: FeatureStore, handle: str, options: BuildOptions
) -> tuple[PinnedModule, FeatureView]:
    """The module of a handle, and its view under these options, made known to the store."""
    pinned = pin_module(store.catalog, handle, preprocess=options.preprocess)
    view = pinned.view(options.view_settings)
    store.catalog.add_view(view, pinned.handle, preprocess=pinned.preprocess_handle)
    return pinned, view


def default_dataset_name(sources: Sequence[Source]) -> str:
    """What a corpus is called if nobody says: ``sst2.train.tsv`` → ``sst2``; ``-`` → ``stdin``."""
    path = sources[0].path
    stem = "stdin" if path == "-" else Path(path).name.split(".")[0]
    return re.sub(r"[^\w+-]", "_", stem)[:MAX_NAME_LENGTH] or "corpus"


def checked_dataset_name(name: str) -> str:
    """The name, if a dataset may have it.

    Raises:
        CorpusError: if it is empty, too long, or has an ``@`` or a character that is not
            printable.
    """
    if not name.isprintable() or "@" in name or not 0 < len(name) <= MAX_NAME_LENGTH:
        raise CorpusError(
            f"{name!r} cannot name a dataset; use 1 to {MAX_NAME_LENGTH} printable characters"
            " without @"
        )
    return name


class MissComputer:
    """Finds the texts that the store lacks and computes them; a context manager.

    Leaving it by an error that is not the store's own, Ctrl-C among them, keeps what was
    computed by then; but nothing of a module that a check has shown to be unfit.
    """

    def __init__(
        self,
        store: FeatureStore,
        pinned: PinnedModule,
        view: FeatureView,
        *,
        options: BuildOptions | None = None,
        on_part: Callable[[], None] = lambda: None,
    ) -> None:
        options = options or BuildOptions()
        self._pinned = pinned
        self._view = view
        self._catalog = store.catalog
        self._reader = store.reader(view)
        self._writer = store.writer(view, limits=options.limits)
        self._batch_tokens = options.batch_tokens
        self._on_part = on_part
        self._computer: Computer | None = None
        self._buffer: dict[bytes, tuple[bytes, str, int]] = {}
        self._num_bytes = 0
        self.num_texts = 0

    def __enter__(self) -> MissComputer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None and not issubclass(kind, StoreError | FidelityError):
            self._writer.flush()
        self._reader.save_index()

    @property
    def counts(self) -> ComputeCounts:
        """What was computed."""
        return ComputeCounts() if self._computer is None else self._computer.counts

    @property
    def num_waiting(self) -> int:
        """Texts that are yet to be computed."""
        return self.num_texts - self.counts.texts

    @property
    def published_bytes(self) -> list[int]:
        """Size of each shard written."""
        return [record.num_bytes for record in self._writer.published]

    def add(self, keys: Keys, batch: DocumentBatch) -> None:
        """Take documents; compute those that are missing once there are enough."""
        pending = self._writer.pending
        missing = np.flatnonzero(~self._reader.contains(keys))
        for position, key in zip(missing.tolist(), map(bytes, keys[missing]), strict=True):
            if key not in self._buffer and key not in pending:
                text = batch.texts[position]
                self._buffer[key] = (text, batch.source.path, batch.lines[position])
                self._num_bytes += len(text)
                self.num_texts += 1
        if self._buffer:
            computer = self._open_computer()
            full = len(self._buffer) >= computer.buffer_texts
            if full or self._num_bytes >= computer.buffer_bytes:
                self._compute_buffer(computer)

    def finish(self) -> None:
        """Compute what is left and close the open shard; all is acknowledged after."""
        if self._buffer:
            self._compute_buffer(self._open_computer())
        self._writer.flush()
        if self._computer is not None:
            found = self._computer.fidelity.report
            self._catalog.add_check(
                self._view.fingerprint, texts=found.texts, max_difference=found.max_difference
            )

    def _open_computer(self) -> Computer:
        """The computer, whose module is loaded at the first text that is missing."""
        if self._computer is None:
            self._computer = make_computer(
                self._pinned.load_encoder(self._view),
                self._writer,
                self._view,
                fidelity=Fidelity(self._pinned.handle, self._view.dtype),
                batch_tokens=self._batch_tokens,
                on_batch=self._on_part,
            )
        return self._computer

    def _compute_buffer(self, computer: Computer) -> None:
        for part in _parts(self._buffer, computer.buffer_texts, computer.buffer_bytes):
            computer.compute(part)
            self._on_part()
        self._buffer = {}
        self._num_bytes = 0


def _parts(
    buffer: Mapping[bytes, tuple[bytes, str, int]], max_texts: int, max_bytes: int
) -> Iterator[MissingTexts]:
    """A buffer in pieces of at most so many texts and about so many bytes."""
    keys: list[bytes] = []
    num_bytes = 0
    for key, (text, _, _) in buffer.items():
        keys.append(key)
        num_bytes += len(text)
        if len(keys) >= max_texts or num_bytes >= max_bytes:
            yield _missing_texts(keys, buffer)
            keys, num_bytes = [], 0
    if keys:
        yield _missing_texts(keys, buffer)


def _missing_texts(
    keys: list[bytes], buffer: Mapping[bytes, tuple[bytes, str, int]]
) -> MissingTexts:
    entries = [buffer[key] for key in keys]
    return MissingTexts(
        np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES),
        [text for text, _, _ in entries],
        lambda position: f"{entries[position][1]}:{entries[position][2]}",
    )
