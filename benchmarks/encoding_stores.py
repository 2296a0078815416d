"""One corpus stored in every dtype and layout: B9's stores, their sizes and their rows."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

import embedcache
from benchmarks.machine import installed_version
from benchmarks.measure import WrongAnswerError
from embedcache import FeatureStore, FeatureStream
from embedcache.modules.handles import DEFAULT_HANDLE
from embedcache.precompute import BuildOptions
from embedcache.store.shards.shard import Shard
from embedcache.store.upkeep.compact import CompactOptions, compact_store
from embedcache.store.upkeep.shard_facts import shard_facts
from embedcache.store.writer import WriterLimits

DTYPES = ("float32", "float16", "bfloat16", "int8")
DATASET = "b9"
BATCH_SIZE = 64
_ROWS = ("values", "codes", "dictionary", "scales")
_CHUNK_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Layout:
    """How rows lie in a shard; it changes no number."""

    encoding: str
    compression: str

    def __str__(self) -> str:
        return self.encoding + ("" if self.compression == "none" else f", {self.compression}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A corpus and a module.

    Attributes:
        corpus: The corpus, for the tables.
        kind: The module, for the tables.
        what: The module, for the notes.
        sources: The corpus's files by split.
        module: The module's handle.
        layer: As ``--layer`` has it; None: the module's output.
        encodings: Those that its features may have; it is built in the first.
        num_seeds: Trainings on each dtype; 0: none.
        is_read: Whether reading is timed.
    """

    corpus: str
    kind: str
    what: str
    sources: dict[str, Path]
    module: str = DEFAULT_HANDLE
    layer: str | None = None
    encodings: tuple[str, ...] = ("dense", "dictionary")
    num_seeds: int = 0
    is_read: bool = True

    @property
    def name(self) -> str:
        """Of both, for the tables."""
        return f"{self.corpus}, {self.kind}"


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes on disk, each divided by the number of tokens.

    Attributes:
        file: The whole shards.
        rows: Numbers, codes, dictionary, scales.
        tokens: Ids and spans.
    """

    file: float
    rows: float
    tokens: float


class StoredSubject:
    """A subject in one store for each layout, which has a view for each dtype.

    Args:
        subject: What to store; it is built here.
        folder: Where the stores go.

    Attributes:
        subject: The subject.
        layouts: All layouts, that of the build first.
        num_texts: Distinct texts.
        num_tokens: Rows of them.
        errors: By dtype, what storing has cost, over all rows; see `reconstruction_error`.
    """

    def __init__(self, subject: Subject, folder: Path) -> None:
        self.subject = subject
        self._folder = folder
        self.layouts = [
            Layout(encoding, compression)
            for compression in compressions()
            for encoding in subject.encodings
        ]
        self.num_texts = self.num_tokens = 0
        self._views = self._build()
        for layout in self.layouts[1:]:
            self._lay_out(layout)
        self.errors = self._errors()

    def _build(self) -> dict[str, str]:
        layout, subject = self.layouts[0], self.subject
        views = {}
        with embedcache.open_store(self.path(layout)) as store:
            for dtype in DTYPES:
                options = BuildOptions(
                    layer=subject.layer, dtype=dtype, limits=WriterLimits(encoding=layout.encoding)
                )
                report = embedcache.build(
                    store, subject.sources, module=subject.module, dataset=DATASET, options=options
                )
                views[dtype] = report.view
                self.num_texts, self.num_tokens = report.unique, report.tokens
        return views

    def _lay_out(self, layout: Layout) -> None:
        """The same rows in another layout, as ``embedcache compact`` writes it."""
        shutil.copytree(self.path(self.layouts[0]), self.path(layout))
        options = CompactOptions(
            encoding=layout.encoding, compression=layout.compression, grace_s=0.0
        )
        with self.open(layout) as store:
            compact_store(store, options=options)

    def path(self, layout: Layout) -> Path:
        """The folder of a layout's store."""
        return self._folder / f"{layout.encoding}-{layout.compression}"

    def open(self, layout: Layout) -> FeatureStore:
        """The store of a layout."""
        return embedcache.open_store(self.path(layout), create=False)

    def view(self, dtype: str) -> str:
        """The fingerprint of a dtype's view."""
        return self._views[dtype]

    def stream(self, store: FeatureStore, dtype: str) -> FeatureStream:
        """Shuffled batches from one of the stores."""
        return FeatureStream(store, DATASET, view=self.view(dtype), batch_size=BATCH_SIZE)

    def sizes(self, layout: Layout, dtype: str) -> Sizes:
        """What the shards take.

        Raises:
            WrongAnswerError: if they are laid out otherwise.
        """
        with self.open(layout) as store:
            paths = [
                store.layout.shard_path(record.view, record.digest)
                for record in store.catalog.shards(self.view(dtype))
            ]
        wanted = "codes" if layout.encoding == "dictionary" else "values"
        found = {(facts.rows, facts.compression) for facts in map(shard_facts, map(Shard, paths))}
        if found != {(wanted, layout.compression)}:
            raise WrongAnswerError(f"the shards of {layout} are {found}")
        stored = [_stored_bytes(path) for path in paths]
        return Sizes(
            sum(path.stat().st_size for path in paths) / self.num_tokens,
            sum(sizes.get(name, 0) for sizes in stored for name in _ROWS) / self.num_tokens,
            sum(sizes.get(name, 0) for sizes in stored for name in ("token_ids", "spans"))
            / self.num_tokens,
        )

    def rows(self, layout: Layout, dtype: str) -> NDArray[Any]:
        """The rows of all distinct texts in the order of their keys, as they are read."""
        with self.open(layout) as store:
            keys = np.unique(store.load_dataset(DATASET).keys, axis=0)
            reader = store.reader(self.view(dtype))
            return reader.gather(reader.locate(keys)).values

    def kept_error(self, dtype: str) -> float | None:
        """The relative error that the build itself has kept with the view."""
        with self.open(self.layouts[0]) as store:
            return store.catalog.find_view(self.view(dtype)).rms_error

    def is_exact(self, dtype: str) -> bool:
        """Whether the dtype has kept every number as float32 has it."""
        return self.errors[dtype] == (0.0, 0.0)

    def count_differing(self) -> int:
        """Rows of all dtypes and layouts that are not the same bits as in the first layout."""
        num_differing = 0
        for dtype in DTYPES:
            expected = self.rows(self.layouts[0], dtype)
            for layout in self.layouts[1:]:
                num_differing += count_differing_rows(expected, self.rows(layout, dtype))
        return num_differing

    def _errors(self) -> dict[str, tuple[float, float]]:
        exact = self.rows(self.layouts[0], DTYPES[0])
        return {
            dtype: reconstruction_error(exact, self.rows(self.layouts[0], dtype))
            for dtype in DTYPES
        }


def open_all(
    stack: ExitStack, subjects: Sequence[StoredSubject]
) -> Iterator[tuple[StoredSubject, Layout, FeatureStore]]:
    """Every store of some subjects; the stack closes them."""
    for stored in subjects:
        for layout in stored.layouts:
            yield stored, layout, stack.enter_context(stored.open(layout))


def compressions() -> tuple[str, ...]:
    """Those that can be written here."""
    return ("none",) if installed_version("hdf5plugin") is None else ("none", "zstd")


def reconstruction_error(exact: NDArray[Any], served: NDArray[Any]) -> tuple[float, float]:
    """How far rows are from what they should be.

    Args:
        exact: Shape (T, dim), float32.
        served: The same after storing.

    Returns:
        √(Σ(served - exact)² ÷ Σ exact²); and the largest error of a number, as a share of the
        largest magnitude in its row.
    """
    squared_error = squared_norm = largest = 0.0
    for start in range(0, len(exact), _CHUNK_ROWS):
        part = exact[start : start + _CHUNK_ROWS].astype(np.float64)
        error = np.abs(served[start : start + _CHUNK_ROWS] - part)
        squared_error += float(np.square(error).sum())
        squared_norm += float(np.square(part).sum())
        norms = np.abs(part).max(axis=1)
        shares = error.max(axis=1)[norms > 0] / norms[norms > 0]
        largest = max(largest, float(shares.max(initial=0.0)))
    return math.sqrt(squared_error / squared_norm), largest


def count_differing_rows(one: NDArray[Any], other: NDArray[Any]) -> int:
    """How many rows of two (T, dim) of one dtype have other bits: 0 and -0 are two numbers."""
    bits = f"u{one.itemsize}"
    return int(np.count_nonzero((one.view(bits) != other.view(bits)).any(axis=1)))


def _stored_bytes(path: Path) -> dict[str, int]:
    """Bytes that each dataset of a shard takes in its file."""
    with h5py.File(path, "r", locking=False) as file:
        return {name: dataset.id.get_storage_size() for name, dataset in file.items()}
