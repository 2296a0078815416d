"""FeatureService: hits at once, misses once, and who hears of what went wrong."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedcache.errors import CorpusError, ModuleError, UnknownNameError
from embedcache.keys import keys_of_texts
from embedcache.service.catalog_watch import catalog_stamp
from embedcache.service.errors import ServiceProblem
from embedcache.service.features import FeatureService
from embedcache.service.metrics import ServiceMetrics
from embedcache.service.settings import Limits, ServiceSettings
from embedcache.store.store import FeatureStore, open_store
from embedcache.store.upkeep.forget import forget_texts
from embedcache.store.upkeep.maintain import verify_store
from tests.embedcache.service.feature_service import (
    FAKE_WORKER,
    Bench,
    bench_of,
    check_rows,
    open_fake_store,
    put_texts,
    run_with_service,
)
from tests.embedcache.service.serving import ROOT
from tests.embedcache.service.waiting import until
from tests.embedcache.service.worker_targets import (
    BREAKS,
    DIES,
    FAILS,
    GATE,
    NAN,
    OTHER_VIEW,
    VIEW,
    WAITS,
)

STORED = ["1 2 3", "", "4", "1 1 1 1 1", *(f"{number} 9" for number in range(10, 300))]

Scenario = Callable[[Bench], Awaitable[None]]


@pytest.fixture
def fake_store(tmp_path: Path) -> Iterator[FeatureStore]:
    with open_fake_store(tmp_path / "store", STORED) as store:
        yield store


# Hits


@pytest.mark.parametrize("count", [1, 2, 30, 128, 129, 290])
def test_stored_texts_are_given_and_nothing_is_computed(
    fake_store: FeatureStore, count: int
) -> None:
    async def scenario(bench: Bench) -> None:
        # The first time by the index, then by what is at hand.
        for _ in range(2):
            features = await bench.ask(*STORED[:count])
            check_rows(features, STORED[:count])
            assert (features.hits, features.misses) == (count, 0)
            np.testing.assert_array_equal(features.keys, keys_of_texts(STORED[:count]))
        assert bench.service.worker_pid is None
        assert (bench.computed, bench.total("embedcache_hits_total")) == (0, 2 * count)

    run_with_service(fake_store, scenario)


def test_texts_of_several_shards_and_twice_in_a_request_are_given(
    fake_store: FeatureStore,
) -> None:
    put_texts(fake_store, ["77 1", "78"])
    texts = ["78", "1 2 3", "77 1", "78", ""]

    async def scenario(bench: Bench) -> None:
        for _ in range(2):
            check_rows(await bench.ask(*texts), texts)

    run_with_service(fake_store, scenario)


def test_a_hit_asks_neither_the_catalog_nor_the_event_loop(fake_store: FeatureStore) -> None:
    async def scenario(bench: Bench) -> None:
        fake_store.catalog.close()
        fake_store.layout.catalog.rename(fake_store.path / "aside")
        hit = bench.ask("1 2 3", "4")
        with pytest.raises(StopIteration) as done:
            hit.send(None)  # type: ignore[attr-defined] - it is a coroutine
        check_rows(done.value.value, ["1 2 3", "4"])
        (fake_store.path / "aside").rename(fake_store.layout.catalog)

    run_with_service(fake_store, scenario)


def test_a_hit_does_not_wait_for_a_miss(fake_store: FeatureStore) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.ask("5 5")
        pid = bench.service.worker_pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        missing = asyncio.create_task(bench.status("1 2 3", "6 6", seconds=2))
        await asyncio.sleep(0)
        num_hits = 0
        while not missing.done():
            # With the worker stopped nothing but hits can be answered.
            check_rows(await bench.ask("4", "5 5"), ["4", "5 5"])
            num_hits += 1
            await asyncio.sleep(0.001)
        assert num_hits > 10
        assert await missing == (504, "deadline")
        os.kill(pid, signal.SIGCONT)
        # What was given up by who asked is computed and kept all the same.
        await until(lambda: fake_store.contains(VIEW, ["6 6"]).all())
        check_rows(await bench.ask("6 6"), ["6 6"])
        assert bench.computed == 2

    run_with_service(fake_store, scenario)


# Misses


def test_missing_texts_are_computed_and_kept(fake_store: FeatureStore) -> None:
    texts = ["7 8 9", "1 2 3", "500", "7 8 9"]

    async def scenario(bench: Bench) -> None:
        features = await bench.ask(*texts)
        check_rows(features, texts)
        assert (features.hits, features.misses) == (1, 3)
        again = await bench.ask(*texts)
        check_rows(again, texts)
        assert (again.hits, again.misses) == (4, 0)
        assert bench.computed == 2

    run_with_service(fake_store, scenario)
    with open_store(fake_store.path) as store:
        assert store.contains(VIEW, texts).all()
        assert verify_store(store).is_well


def test_a_thousand_misses_of_one_text_are_one_computation(fake_store: FeatureStore) -> None:
    async def scenario(bench: Bench) -> None:
        answers = await asyncio.gather(*(bench.ask("31 41 59") for _ in range(1000)))
        for features in answers[:3]:
            check_rows(features, ["31 41 59"])
        assert {features.misses for features in answers} == {1}
        assert bench.computed == 1

    run_with_service(fake_store, scenario)


def test_misses_of_different_requests_are_computed_together(fake_store: FeatureStore) -> None:
    async def scenario(bench: Bench) -> None:
        await asyncio.gather(*(bench.ask(f"{number} 600", "1 2 3") for number in range(50)))
        assert bench.computed == 50
        # The first one starts the process, and the others come meanwhile.
        assert bench.total("embedcache_batch_texts_count") <= 2

    run_with_service(fake_store, scenario)


def test_batches_keep_to_the_budget_of_tokens(fake_store: FeatureStore) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.ask(*(f"{number:03} 1000" for number in range(30)))
        assert bench.total("embedcache_batch_texts_count") == 10

    run_with_service(fake_store, scenario, limits=Limits(max_batch_tokens=9))


def test_the_same_text_under_two_views_is_computed_for_each(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        views = bench.service.views
        assert {view.fingerprint for view in views} == {VIEW.fingerprint, OTHER_VIEW.fingerprint}
        asked = [
            bench.service.features(view, ["8 8"], may_compute=True, deadline=time.monotonic() + 60)
            for view in views
        ]
        assert [features.misses for features in await asyncio.gather(*asked)] == [1, 1]
        assert bench.computed == 2

    with open_fake_store(tmp_path / "store", STORED, other=True) as store:
        run_with_service(store, scenario)


# What goes wrong


@pytest.mark.parametrize(
    ("word", "status", "reason"),
    [(NAN, 422, "NaN"), (FAILS, 422, "does not like"), (BREAKS, 500, "RuntimeError")],
)
def test_a_bad_text_fails_its_own_request_only(
    fake_store: FeatureStore, word: str, status: int, reason: str
) -> None:
    async def scenario(bench: Bench) -> None:
        good = [asyncio.create_task(bench.status(f"{number} 3")) for number in range(5)]
        with pytest.raises(ServiceProblem, match=r"^text 2: ") as caught:
            await bench.ask("7 7 7", f"{word} 1")
        assert caught.value.status == status
        assert reason in caught.value.cause
        assert await asyncio.gather(*good) == [(200, "")] * 5
        assert await bench.status("7 7 7", f"{word} 1") == (status, caught.value.code)
        # Of the request that failed, too, what could be computed is kept.
        assert (await bench.ask("7 7 7")).hits == 1
        assert not fake_store.contains(VIEW, [f"{word} 1"]).any()

    run_with_service(fake_store, scenario)


def test_a_worker_that_dies_fails_what_is_in_flight_and_is_started_anew(
    fake_store: FeatureStore,
) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.ask("5 5")
        before = bench.service.worker_pid
        together = await asyncio.gather(bench.status(DIES), bench.status("6 6"))
        assert together == [(503, "worker_died")] * 2
        features = await bench.ask("6 6", "5 5")
        check_rows(features, ["6 6", "5 5"])
        assert (features.hits, features.misses) == (1, 1)
        assert bench.service.worker_pid not in (before, None)

    run_with_service(fake_store, scenario)


def test_a_module_that_cannot_be_loaded_is_no_texts_fault(fake_store: FeatureStore) -> None:
    async def scenario() -> None:
        metrics = ServiceMetrics()
        # The real worker, which looks for a module of the name "fake".
        async with FeatureService(fake_store, ServiceSettings(), metrics) as service:
            bench = Bench(service, metrics)
            with pytest.raises(ServiceProblem, match=r"^the view's module cannot be") as caught:
                await bench.ask("6 6", "1 2 3")
            assert (caught.value.status, caught.value.code) == (503, "module_unavailable")
            # What a client is not told: it may name files of the server's machine.
            assert caught.value.cause.startswith("fake: ")
            assert (await bench.ask("1 2 3")).hits == 1

    asyncio.run(scenario())


def test_a_module_can_be_loaded_before_the_first_miss(fake_store: FeatureStore) -> None:
    async def scenario(bench: Bench) -> None:
        assert bench.service.worker_pid is not None
        assert bench.computed == 0

    run_with_service(fake_store, scenario, preload=True)

    async def fail() -> None:
        settings = ServiceSettings(preload=True)
        async with FeatureService(fake_store, settings, ServiceMetrics()):
            raise AssertionError("a module that is not there was loaded")

    with pytest.raises(ModuleError, match=r"^fake: "):
        asyncio.run(fail())


def test_a_full_queue_refuses_a_request_as_a_whole(
    fake_store: FeatureStore, tmp_path: Path
) -> None:
    async def scenario(bench: Bench) -> None:
        computing = asyncio.create_task(bench.status(WAITS))
        await until(lambda: bench.total("embedcache_batch_texts_count"))
        waiting = asyncio.create_task(bench.status("1", "2", "3"))
        await until(lambda: bench.service.queue_depth == 3)
        assert bench.total("embedcache_queue_texts") == 3
        with pytest.raises(ServiceProblem) as caught:
            await bench.ask("1", "5", "6")
        assert (caught.value.status, caught.value.code) == (429, "queue_full")
        assert 1 <= int(caught.value.headers["Retry-After"]) <= 60
        assert bench.service.queue_depth == 3
        # There is a place for one, and those that wait already need none.
        joining = asyncio.create_task(bench.status("1", "2", "5"))
        await until(lambda: bench.service.queue_depth == 4)
        assert (await bench.ask("1 2 3")).hits == 1
        (tmp_path / GATE).touch()
        assert await asyncio.gather(computing, waiting, joining) == [(200, "")] * 3
        assert await bench.status("1", "5", "6") == (200, "")

    run_with_service(fake_store, scenario, limits=Limits(max_queued_texts=4))


def test_nothing_is_computed_in_a_service_for_reading(fake_store: FeatureStore) -> None:
    async def scenario(bench: Bench) -> None:
        with pytest.raises(ServiceProblem, match=r"1 of 2 texts \(the first: text 2\) is not"):
            await bench.ask("1 2 3", "6 6")
        assert await bench.status("6 6") == (404, "not_stored")
        assert await bench.status("1 2 3") == (200, "")
        assert bench.service.worker_pid is None

    # Also where the module should be there from the start.
    run_with_service(fake_store, scenario, read_only=True, preload=True)


def test_a_key_for_reading_gets_hits_only(fake_store: FeatureStore) -> None:
    async def scenario(bench: Bench) -> None:
        assert await bench.status("6 6", may_compute=False) == (403, "compute_scope")
        assert await bench.status("1 2 3", may_compute=False) == (200, "")
        assert bench.service.worker_pid is None

    run_with_service(fake_store, scenario)


def test_a_lone_surrogate_is_told_and_no_text_is_fine(fake_store: FeatureStore) -> None:
    async def scenario(bench: Bench) -> None:
        with pytest.raises(CorpusError, match="lone surrogate"):
            await bench.ask("1 2 3", "\ud800")
        assert len((await bench.ask()).refs) == 0

    run_with_service(fake_store, scenario)


def test_draining_finishes_what_is_computed_and_takes_no_more(
    fake_store: FeatureStore, tmp_path: Path
) -> None:
    async def scenario(bench: Bench) -> None:
        assert bench.service.is_ready
        missing = asyncio.create_task(bench.ask(WAITS))
        await until(lambda: bench.total("embedcache_batch_texts_count"))
        draining = asyncio.create_task(bench.service.drain())
        await asyncio.sleep(0)
        assert not bench.service.is_ready
        assert await bench.status("6 6") == (503, "draining")
        assert await bench.status("1 2 3") == (200, "")
        (tmp_path / GATE).touch()
        await draining
        check_rows(await missing, [WAITS])
        assert bench.service.worker_pid is None
        assert await bench.status(WAITS) == (200, "")

    run_with_service(fake_store, scenario)


def test_leaving_ends_a_worker_that_never_answers(fake_store: FeatureStore) -> None:
    async def scenario() -> None:
        async with bench_of(fake_store) as bench:
            missing = asyncio.create_task(bench.status(WAITS))
            await until(lambda: bench.total("embedcache_batch_texts_count"))
        assert await missing == (503, "worker_died")

    asyncio.run(scenario())


# What other processes do


def test_a_text_that_is_forgotten_is_not_given_any_more(fake_store: FeatureStore) -> None:
    async def scenario(bench: Bench) -> None:
        features = await bench.ask("1 2 3", "4")
        keys = keys_of_texts(["1 2 3"])
        with open_store(fake_store.path) as other:
            await asyncio.to_thread(forget_texts, other, keys)
        await bench.service.refresh()
        assert await bench.status("1 2 3", may_compute=False) == (403, "compute_scope")
        check_rows(await bench.ask("4"), ["4"])
        assert (bench.service.locate(bench.view, keys).shards == -1).all()
        # Who had asked before still reads what was given.
        check_rows(features, ["1 2 3", "4"])
        check_rows(await bench.ask("1 2 3"), ["1 2 3"])
        assert bench.computed == 1

    run_with_service(fake_store, scenario)


def test_changes_are_seen_without_being_asked_for(fake_store: FeatureStore) -> None:
    async def scenario(bench: Bench) -> None:
        service, view = bench.service, bench.view
        missing = keys_of_texts(["90 90"])
        assert service.locate(view, missing).shards.tolist() == [-1]
        with open_store(fake_store.path) as other:
            put_texts(other, ["90 90"])
            put_texts(other, ["91"], OTHER_VIEW)
        await until(lambda: len(bench.service.views) == 2)
        found = bench.service.find_view(OTHER_VIEW.fingerprint)
        assert found.size.num_texts == 1
        assert service.locate(view, missing).shards.tolist() != [-1]
        with open_store(fake_store.path) as other:
            other.catalog.remove_view(OTHER_VIEW.fingerprint)
        await until(lambda: len(bench.service.views) == 1)
        assert await bench.status("90 90") == (200, "")

    run_with_service(fake_store, scenario)


def test_a_text_that_another_process_computes_is_not_computed_here(
    fake_store: FeatureStore,
) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.ask("5 5")
        put_texts(fake_store, ["90 90"])
        features = await bench.ask("90 90")
        check_rows(features, ["90 90"])
        assert bench.computed == 1

    run_with_service(fake_store, scenario)


def test_small_shards_are_merged_when_there_is_time_and_readers_go_on(
    fake_store: FeatureStore,
) -> None:
    async def scenario(bench: Bench) -> None:
        before = await bench.ask("1 2 3")
        held = [await bench.ask(f"{number} 700") for number in range(5)]
        assert len(fake_store.catalog.shards(VIEW.fingerprint)) == 6
        # One of the texts that were put there, which tell nothing of their tokens. A look
        # between the first of the others and the second sees two shards, too.
        merged = (2, len(STORED) + 5)
        await until(lambda: (bench.view.size.num_shards, bench.view.size.num_texts) == merged)
        texts = [*STORED[:40], *(f"{number} 700" for number in range(5))]
        check_rows(await bench.ask(*texts), texts)
        check_rows(before, ["1 2 3"])
        for number, features in enumerate(held):
            check_rows(features, [f"{number} 700"])
        assert bench.computed == 5

    run_with_service(fake_store, scenario, compact_after=6)
    with open_store(fake_store.path) as store:
        assert verify_store(store).is_well


def test_small_shards_are_merged_under_load_too(fake_store: FeatureStore) -> None:
    async def scenario(bench: Bench) -> None:
        # Never idle: each is asked for while the one before is on its way.
        for number in range(0, 40, 2):
            await asyncio.gather(bench.ask(f"{number} 700"), bench.ask(f"{number + 1} 700"))
        assert len(fake_store.catalog.shards(VIEW.fingerprint)) < 20

    run_with_service(fake_store, scenario, compact_after=1)


def test_the_stamp_of_a_catalog_changes_with_each_transaction_and_not_else(
    fake_store: FeatureStore,
) -> None:
    path = fake_store.layout.catalog
    stamps = [catalog_stamp(path)]
    fake_store.catalog.views()
    assert catalog_stamp(path) == stamps[0]
    for number in range(20):
        fake_store.catalog.add_check(VIEW.fingerprint, texts=1, max_difference=float(number))
        stamps.append(catalog_stamp(path))
    assert len(set(stamps)) == 21


def test_findings_are_kept_with_the_view_when_the_worker_ends(fake_store: FeatureStore) -> None:
    async def scenario(bench: Bench) -> None:
        for number in range(12):
            await bench.ask(f"{number} 700 701")
        await bench.service.drain()

    run_with_service(fake_store, scenario)
    record = fake_store.catalog.find_view(VIEW.fingerprint)
    # The first eight: not each batch's own.
    assert record.checked_texts == 8


# Names


def _names(bench: Bench) -> list[tuple[str | None, str]]:
    return [(view.alias, view.fingerprint) for view in bench.service.views]


def test_every_view_is_served_and_the_default_is_the_newest(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        assert _names(bench) == [(None, VIEW.fingerprint), (None, OTHER_VIEW.fingerprint)]
        find = bench.service.find_view
        assert find(None).fingerprint == VIEW.fingerprint
        assert find(OTHER_VIEW.fingerprint).record.view == OTHER_VIEW
        assert find(OTHER_VIEW.fingerprint[:6]).record.view == OTHER_VIEW
        for name in ("zz", "", "fake"):
            with pytest.raises(ServiceProblem, match=VIEW.fingerprint) as caught:
                find(name)
            assert (caught.value.status, caught.value.code) == (404, "unknown_view")

    with open_fake_store(tmp_path / "store", STORED, other=True) as store:
        run_with_service(store, scenario)


def test_views_that_are_named_are_served_alone_and_by_their_names(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        assert _names(bench) == [("mine", OTHER_VIEW.fingerprint)]
        find = bench.service.find_view
        for name in (None, "mine", OTHER_VIEW.fingerprint, "fake"):
            assert find(name).record.view == OTHER_VIEW
        with pytest.raises(ServiceProblem, match="mine"):
            find(VIEW.fingerprint)

    with open_fake_store(tmp_path / "store", STORED, other=True) as store:
        run_with_service(store, scenario, views=(f"mine={OTHER_VIEW.fingerprint[:8]}",))


@pytest.mark.parametrize(
    "settings", [{"views": ("zz",)}, {"views": ("a=zz",)}, {"views": ("",)}, {"runs": ("no",)}]
)
def test_a_name_of_nothing_is_told_at_the_start(
    fake_store: FeatureStore, settings: dict[str, Any]
) -> None:
    async def never(_bench: Bench) -> None:
        raise AssertionError("it has started")

    with pytest.raises(UnknownNameError) as caught:
        run_with_service(fake_store, never, **settings)
    assert "\n" not in str(caught.value)


def test_a_store_without_views_can_be_served(store: FeatureStore) -> None:
    async def scenario(bench: Bench) -> None:
        assert bench.service.is_ready
        with pytest.raises(ServiceProblem, match="embedcache build"):
            bench.service.find_view(None)
        put_texts(store, STORED)
        await until(lambda: bench.service.views)
        check_rows(await bench.ask("1 2 3"), ["1 2 3"])

    run_with_service(store, scenario)


# What the process imports

_HITS_ONLY = """
import asyncio, sys, time
from pathlib import Path
from embedcache.service.features import FeatureService
from embedcache.service.metrics import ServiceMetrics
from embedcache.service.settings import ServiceSettings
from embedcache.store.store import open_store

async def main(store):
    async with FeatureService(store, ServiceSettings(), ServiceMetrics(), worker=sys.argv[2]) as it:
        for texts in (["1 2 3", "4"], sys.argv[3:]):
            await it.features(
                it.find_view(None), texts, may_compute=True, deadline=time.monotonic() + 60
            )
        print(it.worker_pid is not None, *({"tensorflow", "keras", "torch"} & set(sys.modules)))

with open_store(Path(sys.argv[1])) as store:
    asyncio.run(main(store))
"""


@pytest.mark.parametrize("missing", [[], ["6 6"]])
def test_a_server_imports_no_tensorflow_and_starts_no_worker_for_hits(
    fake_store: FeatureStore, missing: list[str]
) -> None:
    command = [sys.executable, "-c", _HITS_ONLY, str(fake_store.path), FAKE_WORKER, *missing]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.split() == [str(bool(missing))]
