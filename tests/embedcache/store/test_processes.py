"""Several real processes on one store, and processes that are killed."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np

from embedcache.store.catalog import Catalog
from embedcache.store.maintain import verify_store
from embedcache.store.store import FeatureStore, open_store

NUM_SHARDS = 20
NUM_KILLS = 30
SHARD_TEXTS = 5

Process = subprocess.Popen[str]
Start = Callable[..., Process]
Run = Callable[..., str]


def test_two_writers_and_a_reader_at_once(
    store: FeatureStore, programs: ModuleType, start: Start
) -> None:
    writers = [start("append", store.path, name, NUM_SHARDS) for name in ("one", "two")]
    everything = [
        f"{name}-{number}" for name in ("one", "two") for number in range(NUM_SHARDS * SHARD_TEXTS)
    ]
    num_seen, num_reads = 0, 0
    is_running = True
    while is_running:
        # Asked before reading: the last round reads what the last of them left.
        is_running = any(writer.poll() is None for writer in writers)
        # A text that lies in both answers was there the whole time between.
        if store.catalog.views():
            present = store.contains(programs.VIEW, everything).reshape(-1, SHARD_TEXTS)
            assert (present.all(axis=1) == present.any(axis=1)).all(), "half a shard was seen"
            assert present.sum() >= num_seen, "a text went away"
            num_seen = int(present.sum())
            num_reads += 1
            where = np.flatnonzero(present.reshape(-1))
            programs.assert_served(store, [everything[place] for place in where])
    for writer in writers:
        output, errors = writer.communicate()
        assert writer.returncode == 0, errors
        assert len(output.splitlines()) == NUM_SHARDS
    assert num_seen == len(everything)
    assert num_reads > 1
    report = verify_store(store)
    assert (report.shards, report.rows) == (2 * NUM_SHARDS, len(everything))
    assert (report.corrupt, report.missing, report.orphans) == ([], [], [])


def test_killed_writers_lose_nothing_that_they_acknowledged(
    tmp_path: Path, programs: ModuleType, run: Run
) -> None:
    path = tmp_path / "store"
    assert int(run("kill_while_appending", path, NUM_KILLS)) >= SHARD_TEXTS * NUM_KILLS
    with open_store(path) as store:
        verify_store(store, fix=True)
        report = verify_store(store)
        assert report.is_well
        assert all(orphan.startswith("tmp/") for orphan in report.orphans)


def test_kills_find_an_acknowledgement_that_comes_before_the_commit(
    tmp_path: Path, start: Start
) -> None:
    """The harness itself: with this bug seeded, the test above must fail."""
    process = start("kill_while_appending", tmp_path / "store", 2, "acknowledge-before-commit")
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "AssertionError: an acknowledged text is not there" in errors


def test_writer_killed_at_any_step_leaves_a_shard_or_none(tmp_path: Path, run: Run) -> None:
    assert int(run("die_at_each_step", tmp_path / "store")) >= 24


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
