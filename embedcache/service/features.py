"""FeatureService: stored features at once, and missing ones computed, kept and then given."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from embedcache.errors import StoreError
from embedcache.keys import Keys, keys_of_utf8, utf8_of_text
from embedcache.service.batcher import Outcome
from embedcache.service.catalog_watch import (
    CatalogSnapshot,
    catalog_stamp,
    check_names,
    choose_view,
    read_catalog,
)
from embedcache.service.errors import ServiceProblem
from embedcache.service.misses import COMPUTE_WORKER, MissQueues
from embedcache.service.served_run import ServedRun
from embedcache.service.served_view import Coverage, ServedView, ViewSize, add_shards, cover_view
from embedcache.store.refs import FeatureRefs

if TYPE_CHECKING:
    from embedcache.service.metrics import ServiceMetrics
    from embedcache.service.settings import ServiceSettings
    from embedcache.store.reader import ViewReader
    from embedcache.store.store import FeatureStore

__all__ = ["FeatureService", "Features", "ServedView"]

REFRESH_S = 1.0
"""How often it looks whether the catalog has changed, which takes some microseconds."""
_MAX_NAMED = 20
"""Views that an error lists."""
COMPACT_AFTER = 64
"""Every look-up in a shard's file costs a descriptor, and each batch of misses makes a shard."""


@dataclass(frozen=True, slots=True)
class Features:
    """The features of n texts.

    Attributes:
        refs: Where they lie; none is missing.
        reader: What gathers them.
        keys: Of the texts, (n, 16).
        hits: Texts that were stored.
        misses: Texts that were not, and are now.
        num_rows: Rows of all texts together.
    """

    refs: FeatureRefs
    reader: ViewReader
    keys: Keys
    hits: int
    misses: int
    num_rows: int = field(init=False)

    def __post_init__(self) -> None:
        lengths = self.refs.lengths
        # Of one text the sum takes longer than anything else in `Features`.
        num_rows = lengths.item() if len(lengths) == 1 else lengths.sum().item()
        object.__setattr__(self, "num_rows", num_rows)


class FeatureService:
    """The features of one store, for one event loop. An async context manager.

    A hit is answered from the index and the memory map alone: it makes no query and waits for
    nobody. A miss is computed by another process, once for all who ask for it, and given when
    it is durable.

    Args:
        store: An open store; it stays the caller's.
        settings: Which views are served, whether misses are computed, and the limits.
        metrics: Counts hits, misses and batches.
        compact_after: How many small shards of a view are merged once there is time.
        worker: What computes, in its own process; see `WorkerProcess`.
    """

    def __init__(
        self,
        store: FeatureStore,
        settings: ServiceSettings,
        metrics: ServiceMetrics,
        *,
        compact_after: int = COMPACT_AFTER,
        worker: str = COMPUTE_WORKER,
    ) -> None:
        self._store = store
        self._settings = settings
        self._metrics = metrics
        self._views: tuple[ServedView, ...] = ()
        self._runs: tuple[ServedRun, ...] = ()
        self._stamp: tuple[int, ...] = ()
        self._covering = asyncio.Lock()
        self._misses = MissQueues(
            str(store.path),
            settings.limits,
            metrics,
            on_stored=self._see_shards,
            on_changed=self.refresh,
            compact_after=compact_after,
            target=worker,
        )
        self._ticker: asyncio.Task[None] | None = None
        self._is_open = False

    async def __aenter__(self) -> FeatureService:
        """Read the catalog, and load modules where that was asked for.

        Raises:
            UnknownNameError: if a view or a run that is to be served is not there.
            ModuleError: if a module that is to be loaded now cannot be.
            StoreError: if the store cannot be read.
        """
        await asyncio.to_thread(check_names, self._store, self._settings)
        await self._look()
        if self._settings.preload and not self._settings.read_only:
            try:
                await self._preload()
            except BaseException:
                await self._misses.close()
                raise
        self._ticker = asyncio.create_task(self._tick())
        self._is_open = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._close()

    @property
    def store(self) -> FeatureStore:
        """The store."""
        return self._store

    @property
    def views(self) -> tuple[ServedView, ...]:
        """The views that are served, the default one first."""
        return self._views

    @property
    def runs(self) -> tuple[ServedRun, ...]:
        """All runs of the store, oldest first; see `PredictionService.runs`."""
        return self._runs

    @property
    def is_ready(self) -> bool:
        """Whether it takes requests: not before it is entered, nor while it drains."""
        return self._is_open and not self._misses.is_draining

    @property
    def queue_depth(self) -> int:
        """Missing texts that wait to be computed."""
        return self._misses.num_waiting

    @property
    def worker_pid(self) -> int | None:
        """Of the process that computes misses; None where none runs."""
        return self._misses.worker_pid

    def find_view(self, name: str | None) -> ServedView:
        """The view of an alias, a fingerprint or its beginning, or of a module's handle.

        Args:
            name: None: the default view.

        Raises:
            ServiceProblem: 404, if there is none, or several.
        """
        views = self._views
        if name is None:
            if views:
                return views[0]
            raise ServiceProblem(
                404, "unknown_view", "the store has no views yet; `embedcache build` makes one"
            )
        for view in views:
            if name in (view.alias, view.fingerprint):
                return view
        record = choose_view(name, [view.record for view in views])[1]
        for view in views:
            if record is not None and view.fingerprint == record.fingerprint:
                return view
        known = ", ".join(map(_names_of, views[:_MAX_NAMED])) or "none"
        raise ServiceProblem(
            404,
            "unknown_view",
            "that is the name of no view here, or of several; where none is named, the first of"
            f" these is taken: {known}",
        )

    def locate(self, view: ServedView, keys: Keys) -> FeatureRefs:
        """Where the matrices of keys lie; the shard is -1 where one is missing.

        They are good for `reader` of the view until the event loop goes on.

        Raises:
            CorruptShardError: if a shard is damaged or lost.
        """
        return view.locate(keys)

    def reader(self, view: ServedView) -> ViewReader:
        """What gathers the matrices that `locate` has found just now."""
        return view.reader

    async def features(
        self, view: ServedView, texts: Sequence[str], *, may_compute: bool, deadline: float
    ) -> Features:
        """The features of texts; those that are missing are computed and kept.

        Args:
            view: The view.
            texts: n texts.
            may_compute: Whether missing ones may be computed.
            deadline: How long to wait for these, as `time.monotonic` has it.

        Raises:
            CorpusError: if a text has a lone surrogate.
            ServiceProblem: 404 ``not_stored``, where nothing is computed here; 403
                ``compute_scope``, if it may not be; 422, if a text cannot be; 429 with
                ``Retry-After``, if too many wait; 503, while the service ends, or if the
                module, the store or the worker fails; 504 after the deadline: computing
                goes on, and what comes of it is kept.
            StoreError: if the store cannot be read.
        """
        encoded = [utf8_of_text(text) for text in texts]
        keys = keys_of_utf8(encoded)
        refs = view.locate(keys)
        if refs.one_shard >= 0 or not (refs.shards < 0).any():
            self._metrics.count_texts(view.fingerprint, hits=len(texts), misses=0)
            return Features(refs, view.reader, keys, len(texts), 0)
        places = np.flatnonzero(refs.shards < 0).tolist()
        self._metrics.count_texts(
            view.fingerprint, hits=len(texts) - len(places), misses=len(places)
        )
        if not may_compute and not self._settings.read_only:
            raise ServiceProblem(
                403, "compute_scope",
                f"{_count(places, texts)} not stored, and this key may not have them computed",
            )  # fmt: skip
        if self._settings.read_only:
            raise ServiceProblem(
                404, "not_stored", f"{_count(places, texts)} not stored, and nothing is computed"
                " here",
            )  # fmt: skip
        wanted = {keys[place].tobytes(): encoded[place] for place in places}
        outcomes = self._misses.request(view, wanted)
        await _wait_for(outcomes, deadline)
        # Of a text that stands twice, the first place.
        first_places = {keys[place].tobytes(): place for place in reversed(places)}
        _raise_failure(dict(zip((first_places[key] for key in wanted), outcomes, strict=True)))
        refs = await self._locate_computed(view, keys)
        return Features(refs, view.reader, keys, len(texts) - len(places), len(places))

    async def drain(self) -> None:
        """Take no more misses, finish those there are, and end the worker.

        Hits are answered on.
        """
        await self._misses.drain()

    async def refresh(self) -> None:
        """Look at the catalog now: see new views, shards and runs, forget what was removed.

        Raises:
            StoreError: if the catalog cannot be read.
        """
        await self._look()

    async def _locate_computed(self, view: ServedView, keys: Keys) -> FeatureRefs:
        refs = view.locate(keys)
        if (refs.shards < 0).any():
            # Another process has computed them, or they were compacted in between.
            await self._look()
            refs = view.locate(keys)
        if (refs.shards < 0).any():
            raise ServiceProblem(
                503, "removed", "a text was removed from the store while it was asked for; send"
                " the request again", retry_after_s=1.0,
            )  # fmt: skip
        return refs

    async def _see_shards(self, fingerprint: str, digests: Sequence[str]) -> None:
        """Read shards that were written just now."""
        async with self._covering:
            for view in self._views:
                if view.fingerprint == fingerprint:
                    await asyncio.to_thread(add_shards, view.coverage, digests)

    async def _look(self, *, only_if_changed: bool = False) -> None:
        # One at a time, and none between a shard's coming and its being read: a catalog that
        # was read before would seem to have lost it.
        async with self._covering:
            stamp = await asyncio.to_thread(_stamp_of, self._store)
            if only_if_changed and stamp == self._stamp:
                return
            covered = {view.fingerprint: view.coverage for view in self._views}
            known = {run.run: run for run in self._runs}
            snapshot, made = await asyncio.to_thread(
                _cover_all, self._store, self._settings, covered, known
            )
            self._take(snapshot, made)
            # The one from before: what came while the catalog was read is looked at again.
            self._stamp = stamp

    def _take(self, snapshot: CatalogSnapshot, made: Mapping[str, Coverage]) -> None:
        # The same objects as before, which requests hold that go on.
        before = {(view.alias, view.fingerprint): view for view in self._views}
        views = []
        for named in snapshot.views:
            fingerprint = named.record.fingerprint
            view = before.get((named.alias, fingerprint))
            if view is None:
                view = ServedView(named.alias, named.record, made[fingerprint])
            view.replace(named.record, made[fingerprint], ViewSize.of_shards(named.shards))
            views.append(view)
        self._views = tuple(views)
        self._runs = snapshot.runs

    async def _preload(self) -> None:
        for number, view in enumerate(self._views):
            # Of views that nobody has named, the default one's module must be there.
            if number == 0 or self._settings.views:
                await self._misses.load(view)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_S)
            # A catalog that is locked, or a shard that is damaged: the next look may do.
            with suppress(StoreError, OSError):
                await self._look(only_if_changed=True)
            await self._misses.compact_if_idle()

    async def _close(self) -> None:
        self._is_open = False
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.wait([self._ticker])
        await self._misses.close()


def _stamp_of(store: FeatureStore) -> tuple[int, ...]:
    try:
        return catalog_stamp(store.layout.catalog)
    except OSError as error:
        raise StoreError(
            f"{store.layout.catalog}: cannot be read: {error.strerror or error}"
        ) from error


def _cover_all(
    store: FeatureStore,
    settings: ServiceSettings,
    covered: Mapping[str, Coverage],
    runs: Mapping[str, ServedRun],
) -> tuple[CatalogSnapshot, dict[str, Coverage]]:
    """The catalog, and a reader for each of the views, by fingerprint."""
    snapshot = read_catalog(store, settings, runs)
    made: dict[str, Coverage] = {}
    for named in snapshot.views:
        fingerprint = named.record.fingerprint
        if fingerprint not in made:
            digests = [shard.digest for shard in named.shards]
            made[fingerprint] = cover_view(store, named.record, digests, covered.get(fingerprint))
    return snapshot, made


async def _wait_for(outcomes: Sequence[Outcome], deadline: float) -> None:
    timeout_s = max(0.0, deadline - time.monotonic())
    _, pending = await asyncio.wait(outcomes, timeout=timeout_s)
    if pending:
        raise ServiceProblem(
            504, "deadline", f"{len(pending)} texts were not computed in time; they are being"
            " computed and kept: send the request again later",
        )  # fmt: skip


def _raise_failure(outcomes: Mapping[int, Outcome]) -> None:
    """Raise what befell the first of some texts that has failed; by its place in the request."""
    for place in sorted(outcomes):
        failure = outcomes[place].result()
        if failure is None:
            continue
        problem = failure.problem
        prefix = f"text {place + 1}: " if failure.is_of_text else ""
        raise ServiceProblem(
            problem.status,
            problem.code,
            prefix + problem.message,
            retry_after_s=problem.retry_after_s,
            cause=prefix + problem.cause,
        )


def _names_of(view: ServedView) -> str:
    """All that a view is found by."""
    handle = f"{view.fingerprint} ({view.record.handle})"
    return f"{view.alias} = {handle}" if view.alias else handle


def _count(places: Sequence[int], texts: Sequence[str]) -> str:
    are = "is" if len(places) == 1 else "are"
    return f"{len(places)} of {len(texts)} texts (the first: text {places[0] + 1}) {are}"
