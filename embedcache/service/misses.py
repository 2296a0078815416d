"""MissQueues: the misses of all views, on their way through one compute worker."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from embedcache.embedder import TEXTS_SOURCE
from embedcache.errors import EmbedCacheError, EncodingError, FidelityError, ModuleError
from embedcache.service.batcher import BadTextError, MissBatcher, Outcome
from embedcache.service.errors import ServiceProblem, fault
from embedcache.service.worker import WorkerFaultError, WorkerProcess

if TYPE_CHECKING:
    from embedcache.service.compute_worker import Embedded
    from embedcache.service.metrics import ServiceMetrics
    from embedcache.service.served_view import ServedView
    from embedcache.service.settings import Limits

COMPUTE_WORKER = "embedcache.service.compute_worker:open_miss_worker"
_ALONE_PLACE = f"{TEXTS_SOURCE}:1: "
_MAX_RETRY_AFTER_S = 60.0
_FIRST_TEXT_S = 0.01
"""What a text is taken to cost before one was computed."""
_URGENT = 8
"""Small shards are merged under load too, once there are so many times as many."""

OnStored = Callable[[str, Sequence[str]], Awaitable[None]]
"""Is told a view's fingerprint and the shards that were written of it."""


class MissQueues:
    """Has missing texts computed. For one event loop; starts no process before the first one.

    Args:
        store_path: The store's.
        limits: How many texts may wait, and how many tokens a batch has.
        metrics: Counts batches and what is computed.
        on_stored: Makes new shards readable; texts are acknowledged after.
        on_changed: Called when the catalog has other shards than were told of.
        compact_after: How many small shards of a view are merged once there is time.
        target: Makes the worker, in its process; see `WorkerProcess`.
    """

    def __init__(
        self,
        store_path: str,
        limits: Limits,
        metrics: ServiceMetrics,
        *,
        on_stored: OnStored,
        on_changed: Callable[[], Awaitable[None]],
        compact_after: int,
        target: str = COMPUTE_WORKER,
    ) -> None:
        self._limits = limits
        self._metrics = metrics
        self._on_stored = on_stored
        self._on_changed = on_changed
        self._compact_after = compact_after
        self._worker = WorkerProcess(target, (store_path,), name="compute worker's")
        self._batchers: dict[str, MissBatcher] = {}
        self._small_shards: dict[str, int] = {}
        self._text_s = _FIRST_TEXT_S
        self.is_draining = False

    @property
    def num_waiting(self) -> int:
        """Texts that wait for their batch to begin."""
        return sum(batcher.num_waiting for batcher in self._batchers.values())

    @property
    def worker_pid(self) -> int | None:
        """Of the process that computes; None where none runs."""
        return self._worker.pid

    async def load(self, view: ServedView) -> None:
        """Load a view's module now.

        Raises:
            ModuleError: if it cannot be loaded.
        """
        await self._worker.call("load", view.fingerprint)

    def request(self, view: ServedView, texts: Mapping[bytes, bytes]) -> list[Outcome]:
        """Have missing texts computed; see `MissBatcher.request`.

        Raises:
            ServiceProblem: 503 while draining; 429 if more would wait than may: then none of
                these does.
        """
        if self.is_draining:
            raise ServiceProblem(
                503, "draining", "the service is ending, and computes no more texts",
                retry_after_s=1.0,
            )  # fmt: skip
        batcher = self._batcher(view.fingerprint)
        num_waiting = self.num_waiting
        if num_waiting + batcher.count_new(texts) > self._limits.max_queued_texts:
            raise ServiceProblem(
                429, "queue_full", f"{num_waiting} missing texts wait to be computed already; send"
                " the request again later",
                retry_after_s=min(_MAX_RETRY_AFTER_S, num_waiting * self._text_s),
            )  # fmt: skip
        return batcher.request(texts)

    async def compact_if_idle(self) -> None:
        """Merge small shards where there are many, if nothing is being computed."""
        if self.is_draining or not all(each.is_idle for each in self._batchers.values()):
            return
        for fingerprint, count in list(self._small_shards.items()):
            if count >= self._compact_after:
                await self._compact(fingerprint)

    async def drain(self) -> None:
        """Take no more texts, compute those there are, and end the worker."""
        self.is_draining = True
        for batcher in list(self._batchers.values()):
            await batcher.drain()
        await self._worker.close()

    async def close(self) -> None:
        """End the worker, whatever it is at."""
        self.is_draining = True
        await self._worker.close()
        # What waited has met that end.
        for batcher in list(self._batchers.values()):
            await batcher.drain()

    def _batcher(self, fingerprint: str) -> MissBatcher:
        batcher = self._batchers.get(fingerprint)
        if batcher is None:

            async def compute(keys: Sequence[bytes], texts: Sequence[bytes]) -> None:
                await self._compute(fingerprint, keys, texts)

            batcher = self._batchers[fingerprint] = MissBatcher(
                compute,
                max_batch_tokens=self._limits.max_batch_tokens,
                batch_wait_s=self._limits.batch_wait_s,
                on_change=lambda: self._metrics.set_queue(self.num_waiting),
            )
        return batcher

    async def _compute(
        self, fingerprint: str, keys: Sequence[bytes], texts: Sequence[bytes]
    ) -> None:
        """Have a batch computed and read what was written; see `ComputeTexts`."""
        # Apart, so that a module that cannot be loaded is no text's fault.
        await self._worker.call("load", fingerprint)
        self._metrics.observe_batch(len(texts))
        started = time.monotonic()
        try:
            done: Embedded = await self._worker.call(
                "embed", fingerprint, b"".join(keys), list(texts)
            )
        except FidelityError as error:
            raise fault(503, "module_unfit", error) from error
        except (EncodingError, ModuleError) as error:
            reason = str(error).removeprefix(_ALONE_PLACE)
            raise BadTextError(ServiceProblem(422, "not_encodable", reason)) from error
        except WorkerFaultError as error:
            raise BadTextError(fault(500, "internal", error)) from error
        self._metrics.count_computed(fingerprint, done.computed)
        await self._on_stored(fingerprint, done.shards)
        if done.computed < len(texts):
            # Others have stored the rest; or it was stored with a batch that failed as a whole.
            await self._on_changed()
        self._text_s += 0.25 * ((time.monotonic() - started) / len(texts) - self._text_s)
        self._small_shards[fingerprint] = done.small_shards
        if done.small_shards >= _URGENT * self._compact_after:
            await self._compact(fingerprint)

    async def _compact(self, fingerprint: str) -> None:
        # It saves work and nothing else: what went wrong is tried again after the next misses.
        self._small_shards[fingerprint] = 0
        with suppress(EmbedCacheError):
            if await self._worker.call("compact", fingerprint):
                await self._on_changed()
