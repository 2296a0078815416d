"""The texts that a store lacks: found, shared among builders, computed.

Several builders of one corpus share its work by leases (`embedcache.store.leases`): what
another one is at is put aside, and looked at again when nothing else is left to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import TracebackType

import numpy as np

from embedcache.compute.batches import BATCH_TOKENS_DEFAULT
from embedcache.compute.choosing import make_computer
from embedcache.compute.missing import ComputeCounts, Computer, MissingTexts
from embedcache.corpus import DocumentBatch
from embedcache.errors import FidelityError, StoreError
from embedcache.keys import KEY_BYTES, Keys
from embedcache.pinning import PinnedModule
from embedcache.store.database.records import ShardRecord
from embedcache.store.leases import LeaseNames, WorkLeases
from embedcache.store.shards.codec import ReconstructionError
from embedcache.store.store import FeatureStore
from embedcache.store.writer import WriterLimits
from embedcache.view import FeatureView
from embedcache.view_module import ViewModule, error_since

MAX_ASIDE_BYTES = 64 << 20
"""Memory for texts that other builders are at. With more, a builder waits for them."""

_ENTRY_BYTES = 300
"""What an entry of a `_Texts` takes beside its text: measured."""

_Texts = dict[bytes, tuple[bytes, str, int]]
"""Key → text, path of its file, line."""


@dataclass(frozen=True, slots=True)
class _HeldLease:
    """A lease on texts that this builder computes.

    Attributes:
        name: Of the lease.
        keys: Of the texts.
    """

    name: int
    keys: tuple[bytes, ...]


class _Aside:
    """Texts that other builders are at, each once, by the name of the lease that they hold.

    Attributes:
        keys: Of all of them.
        num_bytes: About how much memory they take.
    """

    def __init__(self) -> None:
        self._texts: dict[int, _Texts] = {}
        self.keys: set[bytes] = set()
        self.num_bytes = 0

    @property
    def names(self) -> list[int]:
        """The leases, in the order in which they were refused."""
        return list(self._texts)

    def put(self, name: int, texts: _Texts) -> None:
        """Put texts aside; fine if some are."""
        new = {key: entry for key, entry in texts.items() if key not in self.keys}
        if new:
            self._texts.setdefault(name, {}).update(new)
            self.keys.update(new)
            self.num_bytes += _memory_of(new)

    def pop(self, name: int) -> _Texts:
        """Take the texts of a lease out."""
        texts = self._texts.pop(name)
        self.keys.difference_update(texts)
        self.num_bytes -= _memory_of(texts)
        return texts

    def drop(self, keys: set[bytes]) -> None:
        """Forget some texts."""
        for name in self.names:
            texts = self.pop(name)
            self.put(name, {key: entry for key, entry in texts.items() if key not in keys})


class MissComputer:
    """Finds the texts that the store lacks and computes them; a context manager.

    What another builder is computing is left to it: when `finish` returns, these texts are in
    the store too, or were computed here because the other has failed.

    Leaving it by an error that is not the store's own, Ctrl-C among them, keeps what was
    computed by then; but nothing of a module that a check has shown to be unfit.

    Args:
        store: An open store.
        module: The module; or one that others use too, whose findings and index its owner keeps.
        view: What to compute under.
        limits: When shards close.
        batch_tokens: Tokens that go through a contextual module at once.
        on_part: Called after each piece of work, and before waiting for another builder.

    Attributes:
        num_texts: Texts that were computed here, or are about to be.
        is_waiting: Whether another builder is waited for.
    """

    def __init__(
        self,
        store: FeatureStore,
        module: PinnedModule | ViewModule,
        view: FeatureView,
        *,
        limits: WriterLimits | None = None,
        batch_tokens: int = BATCH_TOKENS_DEFAULT,
        on_part: Callable[[], None] = lambda: None,
    ) -> None:
        self._is_shared = isinstance(module, ViewModule)
        self._module = module if isinstance(module, ViewModule) else ViewModule(module, view)
        self._view = view
        self._catalog = store.catalog
        self._reader = store.reader(view)
        self._writer = store.writer(view, limits=limits)
        self._batch_tokens = batch_tokens
        self._on_part = on_part
        self._computer: Computer | None = None
        self._noted = ReconstructionError()
        self._leases = WorkLeases(store.layout.lease_path(view.fingerprint))
        self._names = LeaseNames()
        self._seen_shards: set[str] = set()
        # Texts to be computed, under leases that are held for them.
        self._buffer: _Texts = {}
        self._num_bytes = 0
        self._open_leases: list[_HeldLease] = []
        # Leases on texts that the writer has: held until these are durable.
        self._written_leases: list[_HeldLease] = []
        self._aside = _Aside()
        self.num_texts = 0
        self.is_waiting = False

    def __enter__(self) -> MissComputer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                pass
            elif issubclass(kind, StoreError | FidelityError):
                self._writer.abandon()
            else:
                self._writer.flush()
                self._keep_findings()
        finally:
            self._leases.close()
        if not self._is_shared:
            self._reader.save_index()

    @property
    def loading_s(self) -> float:
        """Seconds that loading the module took."""
        return self._module.loading_s

    @property
    def counts(self) -> ComputeCounts:
        """What was computed."""
        return ComputeCounts() if self._computer is None else self._computer.counts

    @property
    def num_waiting(self) -> int:
        """Texts that are yet to be computed."""
        return self.num_texts - self.counts.texts

    @property
    def num_elsewhere(self) -> int:
        """Texts that other builders are computing, as far as is known."""
        return len(self._aside.keys)

    @property
    def published(self) -> list[ShardRecord]:
        """The shards written, oldest first."""
        return list(self._writer.published)

    @property
    def published_bytes(self) -> list[int]:
        """Size of each shard written."""
        return [record.num_bytes for record in self._writer.published]

    def add(self, keys: Keys, batch: DocumentBatch) -> None:
        """Take documents; compute those that are missing once there are enough."""
        names = self._names.next_names(keys)
        # Before the reader is asked: a text that becomes durable meanwhile is in one of both.
        pending = self._writer.pending
        missing = np.flatnonzero(~self._reader.contains(keys))
        found: dict[int, _Texts] = {}
        for position, key, name in zip(
            missing.tolist(), map(bytes, keys[missing]), names[missing].tolist(), strict=True
        ):
            if key not in self._buffer and key not in pending and key not in self._aside.keys:
                entry = (batch.texts[position], batch.source.path, batch.lines[position])
                found.setdefault(name, {})[key] = entry
        self._share(found)
        self._compute_if_full()
        if self._aside.num_bytes > MAX_ASIDE_BYTES:
            # Half, so that it is not asked for each batch from now on.
            self._settle(max_bytes=MAX_ASIDE_BYTES // 2)

    def finish(self) -> None:
        """Compute what is left and close the open shard; all is acknowledged after."""
        self._settle(max_bytes=0)
        self._publish()
        self._keep_findings()

    def _keep_findings(self) -> None:
        """Keep with the view what comparing and storing its rows have shown, each row once."""
        if self._computer is None:
            return
        now = self._computer.reconstruction
        self._module.note_error(error_since(self._noted, now))
        self._noted = replace(now)
        if not self._is_shared:
            self._module.keep_findings(self._catalog)

    def _share(self, found: Mapping[int, _Texts]) -> None:
        """Take the texts that nobody is at into the buffer, and put the others aside."""
        taken: dict[int, _Texts] = {}
        for name, texts in found.items():
            if self._leases.try_take(name):
                taken[name] = texts
            else:
                self._aside.put(name, texts)
        self._take(taken)

    def _take(self, leased: Mapping[int, _Texts]) -> None:
        """Take texts into the buffer whose leases are held, unless the store has them by now."""
        if not leased:
            return
        # After the leases were had: who held them before has published what it computed.
        self._look_for_shards()
        pending = self._writer.pending
        stored = self._stored_of([key for texts in leased.values() for key in texts])
        for name, texts in leased.items():
            left = {
                key: entry
                for key, entry in texts.items()
                if key not in stored and key not in pending and key not in self._buffer
            }
            if not left:
                self._leases.release(name)
                continue
            self._open_leases.append(_HeldLease(name, tuple(left)))
            self._buffer.update(left)
            self._num_bytes += sum(len(text) for text, _, _ in left.values())
            self.num_texts += len(left)

    def _look_for_shards(self) -> None:
        """Cover what other builders have published since this was last asked.

        Shards are added, never dropped: `ViewReader.refresh` would drop one that this builder
        publishes right now.
        """
        for record in self._catalog.shards(self._view.fingerprint):
            if record.digest not in self._seen_shards:
                self._reader.add_shard(record.digest)
                self._seen_shards.add(record.digest)

    def _stored_of(self, keys: list[bytes]) -> set[bytes]:
        """Those of some keys that are stored."""
        is_stored = self._reader.contains(_keys_of(keys))
        return {keys[place] for place in np.flatnonzero(is_stored).tolist()}

    def _settle(self, *, max_bytes: int) -> None:
        """Work until no more than so many bytes of texts are put aside."""
        while self._aside.keys:
            self._look_for_shards()
            self._aside.drop(self._stored_of(list(self._aside.keys)))
            if self._aside.num_bytes <= max_bytes:
                return
            # Whoever waits has nothing left to do and holds no lease, so that no two wait for
            # each other; and as a lease ends with its process, none waits for a dead one.
            if not self._take_free() and not self._publish():
                self._wait_for(self._aside.names[0])

    def _take_free(self) -> bool:
        """Take what was put aside and nobody is at any more, about one buffer at most.

        Returns:
            Whether there was any.
        """
        was_free = False
        for name in self._aside.names:
            if self._leases.try_take(name):
                was_free = True
                self._take({name: self._aside.pop(name)})
                if self._compute_if_full():
                    break
        return was_free

    def _wait_for(self, name: int) -> None:
        """Wait until the builder that is at some texts has stored them, or is gone."""
        self.is_waiting = True
        self._on_part()
        self._leases.wait_for(name)
        self.is_waiting = False
        self._take({name: self._aside.pop(name)})

    def _open_computer(self) -> Computer:
        """The computer, whose module is loaded at the first text that is missing."""
        if self._computer is None:
            self._computer = make_computer(
                self._module.load_encoder(),
                self._writer,
                self._view,
                fidelity=self._module.fidelity,
                batch_tokens=self._batch_tokens,
                on_batch=self._after_part,
            )
        return self._computer

    def _compute_if_full(self) -> bool:
        """Compute the buffer if it holds enough; whether it did."""
        if not self._buffer:
            return False
        computer = self._open_computer()
        full = len(self._buffer) >= computer.buffer_texts
        if full or self._num_bytes >= computer.buffer_bytes:
            self._compute_buffer(computer)
            return True
        return False

    def _compute_buffer(self, computer: Computer) -> None:
        for part in _parts(self._buffer, computer.buffer_texts, computer.buffer_bytes):
            computer.compute(part)
            self._after_part()
        self._buffer = {}
        self._num_bytes = 0
        self._written_leases += self._open_leases
        self._open_leases = []
        self._release_durable()

    def _after_part(self) -> None:
        self._release_durable()
        self._on_part()

    def _release_durable(self) -> None:
        """Give up the leases whose texts are all in published shards: others may need them."""
        pending = self._writer.pending
        num_durable = 0
        for lease in self._written_leases:
            # Shards are published one after the other: what was written later is not durable.
            if not pending.isdisjoint(lease.keys):
                break
            self._leases.release(lease.name)
            num_durable += 1
        del self._written_leases[:num_durable]

    def _publish(self) -> bool:
        """Compute the buffer, close the open shard and give up all leases.

        Returns:
            Whether there was anything to do.
        """
        is_work = bool(self._buffer or self._written_leases)
        if self._buffer:
            self._compute_buffer(self._open_computer())
        self._writer.flush()
        self._release_durable()
        return is_work


def _memory_of(texts: _Texts) -> int:
    """About how many bytes some texts take."""
    return sum(_ENTRY_BYTES + len(text) for text, _, _ in texts.values())


def _keys_of(keys: list[bytes]) -> Keys:
    return np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES)


def _parts(buffer: _Texts, max_texts: int, max_bytes: int) -> Iterator[MissingTexts]:
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


def _missing_texts(keys: list[bytes], buffer: _Texts) -> MissingTexts:
    entries = [buffer[key] for key in keys]
    return MissingTexts(
        _keys_of(keys),
        [text for text, _, _ in entries],
        lambda position: f"{entries[position][1]}:{entries[position][2]}",
    )
