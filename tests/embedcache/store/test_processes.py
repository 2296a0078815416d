"""Several real processes on one store; `tests.reliability` has more of them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from types import ModuleType

from embedcache.store.database.catalog import Catalog
from embedcache.store.store import FeatureStore
from embedcache.store.upkeep.maintain import verify_store

SHARD_TEXTS = 5

Process = subprocess.Popen[str]
Start = Callable[..., Process]


def test_killed_writer_leaves_no_lock(
    store: FeatureStore, programs: ModuleType, start: Start
) -> None:
    process = start("append", store.path, "killed", 1000)
    assert process.stdout is not None
    assert len(process.stdout.readline().split()) == SHARD_TEXTS
    process.kill()
    process.wait()
    impatient = Catalog(store.layout.catalog, lock_timeout_s=1)
    impatient.add_view(programs.VIEW, "x")
    impatient.close()


def test_two_writers_of_the_same_texts_write_the_same_shards(
    store: FeatureStore, programs: ModuleType, start: Start
) -> None:
    writers = [start("append", store.path, "same", 4) for _ in range(2)]
    for writer in writers:
        _, errors = writer.communicate()
        assert writer.returncode == 0, errors
    assert len(store.catalog.shards()) == 4, "the same bytes have the same name"
    assert verify_store(store).is_well
    assert store.contains(programs.VIEW, [f"same-{number}" for number in range(20)]).all()
