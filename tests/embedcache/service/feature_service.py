"""A FeatureService in the tests' own process, over a store that needs no TensorFlow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedcache.errors import EmbedCacheError
from embedcache.service.errors import problem_of
from embedcache.service.features import Features, FeatureService, ServedView
from embedcache.service.metrics import ServiceMetrics
from embedcache.service.settings import Limits, ServiceSettings
from embedcache.store.store import FeatureStore, open_store
from embedcache.view import FeatureView
from tests.embedcache.compute.fakes import FakeSequenceEncoder
from tests.embedcache.service.worker_targets import OTHER_VIEW, VIEW

FAKE_WORKER = "tests.embedcache.service.worker_targets:open_fake_worker"


@dataclass(frozen=True)
class Bench:
    """A service with what it counts."""

    service: FeatureService
    metrics: ServiceMetrics

    @property
    def view(self) -> ServedView:
        return self.service.find_view(None)

    async def ask(self, *texts: str, may_compute: bool = True, seconds: float = 60) -> Features:
        """The features of texts under the default view."""
        return await self.service.features(
            self.view, texts, may_compute=may_compute, deadline=time.monotonic() + seconds
        )

    async def status(self, *texts: str, **options: Any) -> tuple[int, str]:
        """What a request is answered with: 200 and nothing, or a problem's status and code."""
        try:
            await self.ask(*texts, **options)
        except EmbedCacheError as error:
            problem = problem_of(error)
            return problem.status, problem.code
        return 200, ""

    def total(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = self.metrics.render().decode().splitlines()
        values = [line.rpartition(" ") for line in lines if not line.startswith("#")]
        return sum(float(value) for key, _, value in values if key.partition("{")[0] == name)

    @property
    def computed(self) -> float:
        """Texts that have reached the module."""
        return self.total("embedcache_computed_texts_total")


@asynccontextmanager
async def bench_of(
    store: FeatureStore, *, compact_after: int = 64, limits: Limits | None = None, **settings: Any
) -> AsyncIterator[Bench]:
    """A service whose module is of NumPy."""
    metrics = ServiceMetrics()
    given = ServiceSettings(limits=limits or Limits(), **settings)
    service = FeatureService(store, given, metrics, compact_after=compact_after, worker=FAKE_WORKER)
    async with service:
        yield Bench(service, metrics)


def run_with_service(
    store: FeatureStore, scenario: Callable[[Bench], Awaitable[None]], **options: Any
) -> None:
    """Run a scenario with a service of a store."""

    async def run() -> None:
        async with bench_of(store, **options) as bench:
            await scenario(bench)

    asyncio.run(run())


def rows_of(text: str) -> list[list[float]]:
    """The rows that the module of NumPy gives for a text."""
    content = FakeSequenceEncoder().content_rows([int(word) for word in text.split()])
    return np.asarray(content).tolist()


def check_rows(features: Features, texts: Sequence[str]) -> None:
    """Raise unless these are the rows of these texts."""
    matrices = features.reader.gather(features.refs)
    assert [matrix.tolist() for matrix in matrices] == [rows_of(text) for text in texts]


def put_texts(store: FeatureStore, texts: Sequence[str], view: FeatureView = VIEW) -> None:
    """Store texts with the rows that the module gives, in a shard of their own."""
    from embedcache.keys import keys_of_texts

    store.catalog.add_view(view, "fake")
    matrices = [np.array(rows_of(text), np.float32).reshape(-1, view.dim) for text in texts]
    lengths = np.array([len(matrix) for matrix in matrices], np.int64)
    writer = store.writer(view)
    flags = np.zeros(len(texts), np.uint8)
    writer.add_values(keys_of_texts(texts), lengths, flags, values=np.concatenate(matrices))
    writer.flush()


def open_fake_store(path: Path, texts: Sequence[str], *, other: bool = False) -> FeatureStore:
    """A store with some texts."""
    store = open_store(path)
    if other:
        put_texts(store, texts, OTHER_VIEW)
    put_texts(store, texts)
    return store
