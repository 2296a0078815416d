"""RemoteReader: the features of one view of a service, as a stream and a store read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from http import HTTPStatus
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache.client.answers import read_features, read_lookup
from embedcache.client.cache import FeatureCache
from embedcache.client.connection import Answer, Connection, Request
from embedcache.client.portions import Portions
from embedcache.errors import KeyNotFoundError
from embedcache.keys import KEY_BYTES, Keys, sort_order
from embedcache.ragged import RaggedArray, splits_of_lengths, whole_rows
from embedcache.store.ahead import ShardUse
from embedcache.store.refs import SEVERAL, FeatureRefs, Members
from embedcache.store.shards.codec import VALUE_DTYPES
from embedcache.view import FeatureView

LOOKUP_KEYS = 4096
"""Keys of a request at most: what the service takes unless it was told another limit."""
ANSWER_BYTES = 32 << 20
"""Matrices of an answer at most; the service sends 64 MiB."""
AHEAD_BYTES = 2 << 20
"""Matrices that a request asks for at least, where more texts are about to be read: over a
line on which a request takes 20 ms, batches of 0.3 MB would come at 15 MB/s one by one."""
_AHEAD_TEXTS = 4096
_GROUP_BYTES = 32 << 20
"""Rows that are in memory at once, spelled out, while a table of tokens is made."""
_MOST_DISTINCT = 0.9
_FEW_ROWS = 1024
"""Rows of tokens repeat: among a thousand words of English less than half are distinct. Rows
that depend on the whole text do not."""

_STORED = 0
"""The number of the one shard that all of a service's texts seem to lie in."""
_MISSING = -1


class RemoteReader:
    """The features of one view of a service. One process, any threads.

    Args:
        connection: To the service.
        view: The view.
        cache: Where matrices are kept that were fetched.
    """

    def __init__(self, connection: Connection, view: FeatureView, cache: FeatureCache) -> None:
        self.view = view
        self._connection = connection
        self._cache = cache
        self._path = f"/v1/features/{view.fingerprint}"
        self._prefix = np.frombuffer(bytes.fromhex(view.fingerprint), np.uint8)
        self._lookups = Portions(connection, max_items=LOOKUP_KEYS, max_bytes=1 << 40)
        self._gathers = Portions(connection, max_items=LOOKUP_KEYS, max_bytes=ANSWER_BYTES)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of what is gathered: the view's value dtype."""
        return VALUE_DTYPES[self.view.dtype]

    @property
    def row_bytes(self) -> int:
        """Bytes of a token's numbers."""
        return self.view.dim * self.dtype.itemsize

    def contains(self, keys: Keys) -> NDArray[np.bool_]:
        """Which keys have features, (n,) bool.

        Raises:
            ServiceError: if the service cannot be asked.
        """
        return self.locate(keys).shards >= 0

    def locate(self, keys: Keys) -> FeatureRefs:
        """What the service has of keys: how long their matrices are.

        All that are stored seem to lie in shard 0, each at position 0.

        Raises:
            ServiceError: if the service cannot be asked, or answers something else.
        """
        lengths = np.zeros(len(keys), np.int64)
        truncated, windowed = np.zeros(len(keys), np.bool_), np.zeros(len(keys), np.bool_)
        sizes = np.full(len(keys), KEY_BYTES)
        for piece, request, answer in self._lookups.ask(
            sizes, lambda piece: self._ask_of_keys("lookup", keys[piece], allowed=(413,))
        ):
            try:
                found = read_lookup(answer.body, piece.stop - piece.start)
            except ValueError as error:
                raise self._connection.wrong_answer(request, str(error)) from None
            lengths[piece] = found.num_tokens
            truncated[piece], windowed[piece] = found.truncated, found.windowed
        shards = np.where(lengths < 0, _MISSING, _STORED)
        one_shard = _STORED if len(keys) and not shards.any() else SEVERAL
        starts = np.zeros(len(keys), np.int64)
        lengths = np.maximum(lengths, 0)
        return FeatureRefs(keys, shards, starts, lengths, truncated, windowed, one_shard)

    def gather(
        self, refs: FeatureRefs, *, known: Mapping[bytes, bytes] | None = None
    ) -> RaggedArray:
        """The matrices of the view's value dtype, in the order of refs; none may be missing.

        Args:
            refs: What was located.
            known: Matrices by name that need not be asked for.

        Raises:
            ServiceError: if the service cannot be asked, or answers something else.
            KeyNotFoundError: if they were removed since they were located.
        """
        # A bytearray, so that the caller may write to the numbers.
        joined = bytearray().join(self.fetch(refs, known or {}))
        values = np.frombuffer(joined, self.dtype).reshape(-1, self.view.dim)
        return RaggedArray(values, splits_of_lengths(refs.lengths))

    def gather_padded(
        self, refs: FeatureRefs, out: NDArray[Any], *, texts: slice = slice(None)
    ) -> None:
        """The matrices into a batch, zeros after the end of each and where one is missing.

        Args:
            refs: What was located.
            out: Shape (n, L, dim), contiguous, of the view's value dtype; overwritten.
            texts: Which n of them, none longer than L.

        Raises:
            ServiceError: if the service cannot be asked, or answers something else.
            KeyNotFoundError: if they were removed since they were located.
        """
        copy_matrices(self.fetch(refs.take(texts), {}), out)

    def prepare(self, refs: FeatureRefs, padded: NDArray[np.int64]) -> FetchedTexts:
        """Prepare texts that will be read batch by batch; nothing is asked for yet."""
        del padded
        return FetchedTexts(self, refs)

    def groups(
        self, refs: FeatureRefs
    ) -> Iterator[tuple[FetchedRows, Members, NDArray[np.int64], NDArray[np.int64]]]:
        """The rows of some MiB of texts after another, for a table of tokens.

        Raises:
            ServiceError: if the service cannot be asked, or answers something else.
            KeyNotFoundError: if they were removed since they were located.
        """
        places = np.flatnonzero(refs.shards >= 0)
        ends = np.cumsum(refs.lengths[places] * self.row_bytes)
        cuts = np.flatnonzero(np.diff(ends // _GROUP_BYTES)) + 1
        for members in np.split(places, cuts):
            if len(members):
                matrices = self.gather(refs.take(members))
                starts = matrices.row_splits[:-1]
                yield FetchedRows(matrices.values), members, starts, matrices.lengths

    def shard_uses(self, refs: FeatureRefs) -> list[ShardUse]:
        """Texts with neighbouring keys as neighbours, as the shards of the service have them."""
        starts = np.empty(len(refs), np.int64)
        starts[sort_order(refs.keys)] = np.arange(len(refs))
        num_bytes = int(refs.lengths.sum()) * self.row_bytes
        members = np.arange(len(refs))
        return [ShardUse(self.view.fingerprint, members, starts, num_bytes, 0, True)]

    def open_shards(self, refs: FeatureRefs) -> Sequence[object]:
        """None: the shards are the service's."""
        del refs
        return ()

    def names_of(self, keys: Keys) -> list[bytes]:
        """What the matrices of n keys are called in the cache, which several views share."""
        names = np.empty((len(keys), len(self._prefix) + KEY_BYTES), np.uint8)
        names[:, : len(self._prefix)] = self._prefix
        names[:, len(self._prefix) :] = keys
        found: list[bytes] = whole_rows(names).tolist()
        return found

    def fetch(self, refs: FeatureRefs, known: Mapping[bytes, bytes]) -> list[bytes]:
        """The bytes of each matrix, in the order of refs; of a missing one none."""
        names = self.names_of(refs.keys)
        cached = zip(names, self._cache.find(names), strict=True)
        found = [known.get(name) if matrix is None else matrix for name, matrix in cached]
        lacking = [place for place, matrix in enumerate(found) if matrix is None]
        fetched = self.fetch_anew(refs.take(np.array(lacking, np.int64)))
        pairs = zip(names, found, strict=True)
        matrices = [fetched[name] if matrix is None else matrix for name, matrix in pairs]
        self.check_sizes(matrices, (refs.lengths * self.row_bytes).tolist())
        return matrices

    def fetch_anew(self, refs: FeatureRefs) -> dict[bytes, bytes]:
        """The bytes of each matrix by name, asked of the service, and kept in the cache.

        What has no rows, or is missing, is not asked for.

        Raises:
            ServiceError: if the service cannot be asked, or answers something else.
            KeyNotFoundError: if texts were removed since they were located.
        """
        names = self.names_of(refs.keys)
        fetched = dict.fromkeys(names, b"")
        places = {name: place for place, name in enumerate(names) if refs.lengths[place]}
        chosen = refs.take(np.array(list(places.values()), np.int64))
        for piece, request, answer in self._gathers.ask(
            chosen.lengths * self.row_bytes,
            lambda piece: self._ask_of_keys("gather", chosen.keys[piece], allowed=(404, 413)),
        ):
            part = chosen.take(piece)
            self._refuse_removed(answer, len(part))
            received = self.read_matrices(request, answer, part.keys, num_tokens=part.lengths)
            self.keep(received)
            fetched |= received
        return fetched

    def read_matrices(
        self, request: Request, answer: Answer, keys: Keys, *, num_tokens: Any = None
    ) -> dict[bytes, bytes]:
        """The bytes of each matrix that was asked for, by name.

        Raises:
            ServiceError: if the answer is anything else.
        """
        try:
            matrices = read_features(
                answer.body, keys, dim=self.view.dim, dtype=self.dtype, num_tokens=num_tokens
            )
        except ValueError as error:
            raise self._connection.wrong_answer(request, str(error)) from None
        # Copies: a view of the answer would keep all of it in memory.
        raw = matrices.values.reshape(-1).view(np.uint8).data
        splits = (matrices.row_splits * self.row_bytes).tolist()
        pieces = zip(self.names_of(keys), splits, splits[1:], strict=False)
        return {name: bytes(raw[start:stop]) for name, start, stop in pieces}

    def check_sizes(self, matrices: Sequence[bytes], sizes: Sequence[int]) -> None:
        """Refuse matrices that have become longer or shorter than the look-up says.

        Raises:
            ServiceError: if a matrix has not the size that belongs to it, in bytes.
        """
        if list(map(len, matrices)) != sizes:
            raise self._connection.error(
                f"texts of view {self.view.fingerprint[:12]} have other lengths than when they were"
                " fetched; connect again"
            )

    def keep(self, matrices: Mapping[bytes, bytes]) -> None:
        """Keep matrices in the cache, by name."""
        self._cache.keep(matrices.items())

    def is_cached(self, name: bytes) -> bool:
        """Whether a matrix need not be asked for."""
        return name in self._cache

    def find_cached(self, names: Sequence[bytes]) -> list[bytes | None]:
        """The matrices that are in the cache, which count as used now."""
        return self._cache.find(names)

    def _ask_of_keys(self, what: str, keys: Keys, *, allowed: tuple[int, ...]) -> Request:
        return Request.post_keys(f"{self._path}/{what}", keys.tobytes(), allowed=allowed)

    def _refuse_removed(self, answer: Answer, num_texts: int) -> None:
        if answer.status != HTTPStatus.NOT_FOUND:
            return
        if answer.problem[0] != "not_stored":
            raise self._connection.refusal(answer)
        raise KeyNotFoundError(
            f"{self._connection.url}: some of {num_texts} texts have been removed from view"
            f" {self.view.fingerprint[:12]} while they were read; `embedcache build` computes them"
            " again"
        )


class FetchedTexts:
    """Texts that are read batch by batch, in their order: several batches come in one request.

    Args:
        reader: Of their view.
        refs: What was located of them.
    """

    def __init__(self, reader: RemoteReader, refs: FeatureRefs) -> None:
        self._reader = reader
        self._refs = refs
        self._names = reader.names_of(refs.keys)
        self._sizes: list[int] = (refs.lengths * reader.row_bytes).tolist()
        # Also where the cache is too small to keep them until their batch comes.
        self._ahead: dict[bytes, bytes] = {}

    def gather_padded(self, texts: slice, out: NDArray[Any]) -> None:
        """As `RemoteReader.gather_padded`."""
        names, sizes = self._names[texts], self._sizes[texts]
        found = self._reader.find_cached(names)
        lacking = [
            place
            for place, (name, matrix) in enumerate(zip(names, found, strict=True), texts.start)
            if matrix is None and self._sizes[place] and name not in self._ahead
        ]
        if lacking:
            chosen = np.array([*lacking, *self._next_ones(lacking, texts.stop)])
            self._ahead |= self._reader.fetch_anew(self._refs.take(chosen))
        pairs = zip(names, found, strict=True)
        matrices = [self._ahead.get(name, b"") if found is None else found for name, found in pairs]
        self._reader.check_sizes(matrices, sizes)
        copy_matrices(matrices, out)
        for name in names:
            self._ahead.pop(name, None)

    def _next_ones(self, lacking: Sequence[int], start: int) -> Iterator[int]:
        """Texts from ``start`` on that the same request may ask for too."""
        num_bytes = sum(self._sizes[place] for place in lacking)
        for place in range(start, min(start + _AHEAD_TEXTS, len(self._names))):
            name, size = self._names[place], self._sizes[place]
            if not size or name in self._ahead or self._reader.is_cached(name):
                continue
            num_bytes += size
            if num_bytes > AHEAD_BYTES:
                return
            yield place


@dataclass(frozen=True)
class FetchedRows:
    """The rows of some texts, spelled out as a service sends them.

    Attributes:
        rows: Shape (T, dim).
    """

    rows: NDArray[Any]

    @cached_property
    def is_dictionary(self) -> bool:
        """Whether rows repeat as those of tokens do."""
        num_rows = len(self.rows)
        if num_rows < _FEW_ROWS:
            return num_rows > 0
        return len(np.unique(whole_rows(self.rows))) <= _MOST_DISTINCT * num_rows

    def take(self, positions: NDArray[np.int64]) -> NDArray[Any]:
        """Rows by position, (len(positions), dim)."""
        return self.rows[positions]


def copy_matrices(matrices: Sequence[bytes], out: NDArray[Any]) -> None:
    """The bytes of n matrices into a batch, zeros after the end of each.

    Args:
        matrices: Each (num_tokens, dim) of the batch's dtype, none longer than L.
        out: Shape (n, L, dim), contiguous; overwritten.
    """
    if not out.size:
        return
    text_bytes = out.shape[1] * out.shape[2] * out.itemsize
    # As `embedcache.store.shards.padding.copy_texts` does, and for its reasons.
    out.fill(0)
    target = out.data.cast("B")
    begin = 0
    for matrix in matrices:
        target[begin : begin + len(matrix)] = matrix
        begin += text_bytes
