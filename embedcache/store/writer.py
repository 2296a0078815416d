"""Collecting features in memory and publishing them as shards."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import EncodingError
from embedcache.keys import KEY_BYTES, Keys
from embedcache.store.database.catalog import Catalog
from embedcache.store.database.records import ShardRecord
from embedcache.store.layout import StoreLayout
from embedcache.store.publish import PendingFile
from embedcache.store.shards.blocks import require_zstd
from embedcache.store.shards.codec import STORAGE_DTYPES, row_width
from embedcache.store.shards.format import FLAG_TRUNCATED, FLAG_WINDOWED, TOKEN_DATASETS, Arrays
from embedcache.store.shards.image import COMPRESSIONS
from embedcache.store.shards.open_shard import OpenShard, PendingKeys, Publication
from embedcache.store.shards.ordering import Part, RowLayout, ordered_content
from embedcache.view import FeatureView

MAX_SHARD_BYTES = 256 << 20
MAX_SHARD_TEXTS = 1 << 18
MAX_SHARD_AGE_S = 60.0
"""A kill loses at most this much work and the shard that is being written: a shard closes then
even if it is small."""

ENCODINGS = ("auto", "dense", "dictionary")


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterLimits:
    """When a shard closes, and how its rows are laid out.

    Attributes:
        max_shard_bytes: Bytes of rows, token ids and spans that a shard holds at most; the
            memory that writing takes is up to twice this: a shard is written while the next
            one is filled.
        max_texts: Texts that a shard holds at most: their keys are kept in memory while it
            is open, at about 150 bytes each.
        max_age_s: Seconds after its first text that a shard closes in any case.
        encoding: ``"dense"`` one row a token; ``"dictionary"`` each distinct row once;
            ``"auto"`` the smaller of the two where the module allows both.
        compression: ``"none"``; or ``"zstd"``, for archives: smaller, and slower to read.
    """

    max_shard_bytes: int = MAX_SHARD_BYTES
    max_texts: int = MAX_SHARD_TEXTS
    max_age_s: float = MAX_SHARD_AGE_S
    encoding: str = "auto"
    compression: str = "none"

    def __post_init__(self) -> None:
        for name, legal in (("encoding", ENCODINGS), ("compression", COMPRESSIONS)):
            value = getattr(self, name)
            if value not in legal:
                raise ValueError(f"{name} must be {' or '.join(legal)}: got {value!r}")


Flags = NDArray[np.uint8] | NDArray[np.bool_]
"""Flags of n texts, (n,): bits of `embedcache.store.shards.format`, or bool: True for a cut one."""


class ShardWriter:
    """Publishes the features of one view, a shard at a time.

    What `add_codes` or `add_values` took is acknowledged when it is in a shard of
    `published`: when `flush` returns, or some time after `close_if_due` closed the shard.
    One thread may use it at a time.

    Attributes:
        published: The shards that are durable and catalogued, oldest first.
    """

    def __init__(
        self,
        layout: StoreLayout,
        catalog: Catalog,
        view: FeatureView,
        *,
        limits: WriterLimits | None = None,
        on_publish: Callable[[ShardRecord], None] = lambda _record: None,
    ) -> None:
        self._layout = layout
        self._catalog = catalog
        self._view = view
        self._limits = limits or WriterLimits()
        if self._limits.compression != "none":
            # Now, and not when the first shard has been computed.
            require_zstd("a compressed shard")
        self._on_publish = on_publish
        self._row_width = row_width(view.dim, view.dtype)
        self._row_bytes = self._row_width * STORAGE_DTYPES[view.dtype].itemsize
        self.published: list[ShardRecord] = []
        self._open = OpenShard()
        self._closing = Publication()

    @property
    def pending(self) -> PendingKeys:
        """The keys that were added and are not acknowledged yet."""
        # The open shard first: between the two lines it may become the closing one.
        opened = self._open.keys
        return PendingKeys(opened, self._closing.shard.keys)

    @property
    def is_due(self) -> bool:
        """Whether the open shard should be closed now."""
        shard, limits = self._open, self._limits
        if not shard.parts:
            return False
        return (
            shard.num_bytes >= limits.max_shard_bytes
            or len(shard.keys) >= limits.max_texts
            or time.monotonic() - shard.opened_at >= limits.max_age_s
        )

    def add_codes(
        self,
        keys: Keys,
        lengths: NDArray[np.int64],
        flags: Flags,
        *,
        codes: NDArray[np.uint32],
        table: NDArray[Any],
        token_ids: NDArray[np.uint32] | None = None,
        spans: NDArray[np.uint32] | None = None,
    ) -> None:
        """Add texts whose rows are rows of a table.

        All of one open shard has the same kind of rows, and token ids and spans or not. The
        arrays are not copied: they must stay as they are until the texts are acknowledged.

        Args:
            keys: Shape (n, 16), distinct and not pending.
            lengths: Tokens of each text, (n,).
            flags: Of each text, (n,) uint8 of the bits `FLAG_TRUNCATED` and `FLAG_WINDOWED`;
                or bool, whether each was cut.
            codes: Row of the table of each token, (T,).
            table: Stored rows, (V, row_width), storage dtype. It may grow between calls;
                rows that stand stay as they are.
            token_ids: Vocabulary id of each token, (T,) uint32.
            spans: UTF-8 bytes [start, end) of its text that each token stands for, (T, 2)
                uint32; start == end for none.

        Raises:
            EncodingError: if shapes or dtypes do not fit, or what was added before is of
                another kind; nothing is added then.
        """
        self._check_rows(table, "table")
        largest = int(codes.max()) if codes.size else -1
        if codes.dtype != np.uint32 or codes.ndim != 1 or largest >= len(table):
            raise EncodingError(
                f"codes must be (T,) uint32 below {len(table)}: got {codes.shape} {codes.dtype} up"
                f" to {largest}"
            )
        before = self._open.table
        if before is not None and len(table) < len(before):
            raise EncodingError(
                f"a table of {len(table)} rows where there were {len(before)}; close the shard"
                " before its codes are places in another one"
            )
        arrays = {"codes": codes, **_token_arrays(len(codes), token_ids, spans)}
        part = Part(keys, lengths, _as_bits(flags), arrays)
        added = self._check_texts(part, len(codes))
        num_bytes = _num_bytes(arrays)
        if self._limits.encoding == "dense":
            num_bytes += len(codes) * self._row_bytes - codes.nbytes
        # Before the part: rows that stand are the same in it, and a part needs its table.
        self._open.table = table
        self._add(part, added, num_bytes)

    def add_values(
        self,
        keys: Keys,
        lengths: NDArray[np.int64],
        flags: Flags,
        *,
        values: NDArray[Any],
        token_ids: NDArray[np.uint32] | None = None,
        spans: NDArray[np.uint32] | None = None,
    ) -> None:
        """Add texts with their own rows.

        Args:
            keys: Shape (n, 16), distinct and not pending.
            lengths: Tokens of each text, (n,).
            flags: As for `add_codes`.
            values: Stored rows, (T, row_width), storage dtype.
            token_ids: As for `add_codes`.
            spans: As for `add_codes`.

        Raises:
            EncodingError: if shapes or dtypes do not fit, or what was added before is of
                another kind; nothing is added then.
        """
        self._check_rows(values, "values")
        arrays = {"values": values, **_token_arrays(len(values), token_ids, spans)}
        part = Part(keys, lengths, _as_bits(flags), arrays)
        self._add(part, self._check_texts(part, len(values)), _num_bytes(arrays))

    def _add(self, part: Part, added: set[bytes], num_bytes: int) -> None:
        if not added:
            return
        shard = self._open
        if not shard.parts:
            shard.opened_at = time.monotonic()
        # Ctrl-C may come between any two of these, and `flush` after it: the part goes in
        # whole, by one step, and what is written is made of the parts alone.
        shard.parts.append(part)
        shard.keys |= added
        shard.num_bytes += num_bytes

    def _check_rows(self, rows: NDArray[Any], name: str) -> None:
        wanted = STORAGE_DTYPES[self._view.dtype]
        if rows.ndim != 2 or rows.shape[1] != self._row_width or rows.dtype != wanted:
            raise EncodingError(
                f"{name} must be (rows, {self._row_width}) {wanted}: got {rows.shape} {rows.dtype}"
            )

    def _check_texts(self, part: Part, num_tokens: int) -> set[bytes]:
        """The keys as a set. What does not fit would be a shard that no reader takes."""
        keys, lengths = part.keys, part.lengths
        shapes = (keys.shape, lengths.shape, part.flags.shape)
        num_texts = len(keys)
        if shapes != ((num_texts, KEY_BYTES), (num_texts,), (num_texts,)):
            raise EncodingError(f"keys, lengths and flags do not fit: {shapes}")
        if int(lengths.min(initial=0)) < 0 or int(lengths.sum()) != num_tokens:
            raise EncodingError(
                f"the lengths add up to {lengths.sum()}, there are {num_tokens} rows"
            )
        self._check_kind(part.arrays)
        added = set(map(bytes, keys))
        if len(added) != num_texts or not self.pending.isdisjoint(added):
            raise EncodingError("a key is given twice, or is pending already")
        return added

    def _check_kind(self, arrays: Arrays) -> None:
        parts = self._open.parts
        open_arrays = parts[0].arrays if parts else arrays
        if ("codes" in arrays) != ("codes" in open_arrays):
            raise EncodingError("one shard takes codes or values, not both; flush in between")
        for name in TOKEN_DATASETS:
            if (name in arrays) != (name in open_arrays):
                raise EncodingError(
                    f"one shard takes {name} of all its texts or of none; flush in between"
                )

    def close_if_due(self) -> None:
        """Close the open shard if it is due; see `close_shard`."""
        if self.is_due:
            self.close_shard()

    def close_shard(self) -> None:
        """Close the open shard: a thread publishes it while the next one is filled.

        Raises:
            StoreError: if the shard before could not be written. Nothing of it is catalogued;
                the next call tries once more.
        """
        self._closing.wait()
        if self._closing.shard.parts:
            self._closing = Publication(self._closing.shard, self._publish)
            self._closing.wait()
        if self._open.parts:
            # In this order: interrupted in between, it is published twice, and not never.
            self._closing = Publication(self._open, self._publish)
            self._open = OpenShard()

    def flush(self) -> None:
        """Close the open shard: all that was added is durable and catalogued when this returns.

        Raises:
            StoreError: if the device refuses; nothing of the shard is catalogued then. What
                was added stays, and the next call tries once more.
        """
        self.close_shard()
        self._closing.wait()

    def abandon(self) -> None:
        """Drop the open shard, and what could not be written; returns when no thread writes."""
        self._open = OpenShard()
        with suppress(Exception):
            self._closing.wait()
        self._closing = Publication()

    def _publish(self, shard: OpenShard) -> None:
        layout = RowLayout(self._limits.encoding, self._limits.compression)
        content = ordered_content(shard.parts, shard.table, self._view, layout)
        fingerprint, is_gone = self._view.fingerprint, True
        # The same shard may have been retired, and its file be deleted, in between.
        while is_gone:
            with PendingFile(self._layout.tmp) as file:
                digest = content.write(file.write_at)
                path = self._layout.shard_path(fingerprint, digest)
                file.commit(path)
            num_tokens = int(content.row_splits[-1])
            record = ShardRecord(digest, fingerprint, len(content.keys), num_tokens, file.size)
            is_gone = self._catalog.add_shard(record, path)
        self.published.append(record)
        self._on_publish(record)


def _token_arrays(
    num_tokens: int, token_ids: NDArray[np.uint32] | None, spans: NDArray[np.uint32] | None
) -> Arrays:
    """Those of the two that there are, by name.

    Raises:
        EncodingError: if shapes or dtypes do not fit, or a span ends before it starts.
    """
    arrays: Arrays = {}
    for name, array, shape in (
        ("token_ids", token_ids, (num_tokens,)),
        ("spans", spans, (num_tokens, 2)),
    ):
        if array is None:
            continue
        if array.shape != shape or array.dtype != np.uint32:
            raise EncodingError(f"{name} must be {shape} uint32: got {array.shape} {array.dtype}")
        arrays[name] = array
    if spans is not None and np.any(spans[:, 1] < spans[:, 0]):
        token = int(np.argmax(spans[:, 1] < spans[:, 0]))
        start, end = spans[token].tolist()
        raise EncodingError(f"the span of token {token} ends before it starts: {start} to {end}")
    return arrays


def _as_bits(flags: Flags) -> NDArray[np.uint8]:
    """Flags as uint8; where they are bool, True is `FLAG_TRUNCATED`.

    Raises:
        EncodingError: if they are of another dtype, or have bits that the format lacks.
    """
    if flags.dtype not in (np.bool_, np.uint8):
        raise EncodingError(f"flags must be uint8 or bool: got {flags.dtype}")
    is_cut = flags.dtype == np.bool_
    bits = (np.where(flags, FLAG_TRUNCATED, 0) if is_cut else flags).astype(np.uint8)
    if np.any(bits & ~np.uint8(FLAG_TRUNCATED | FLAG_WINDOWED)):
        raise EncodingError(f"flags must be made of the bits 1 and 2: got {int(bits.max())}")
    return bits


def _num_bytes(arrays: Arrays) -> int:
    return sum(array.nbytes for array in arrays.values())
