"""Single flight, batches, and who hears of what went wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest

from embedcache.errors import StoreError
from embedcache.service.batcher import BadTextError, Failure, MissBatcher, estimate_tokens
from embedcache.service.errors import ServiceProblem
from tests.embedcache.service.waiting import until


class Bench:
    """Computes nothing, remembers what was asked, and fails on some texts."""

    def __init__(self, *, max_batch_tokens: int = 1000, batch_wait_s: float = 0.0) -> None:
        self.batches: list[list[bytes]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.num_changes = 0
        self.batcher = MissBatcher(
            self._compute,
            max_batch_tokens=max_batch_tokens,
            batch_wait_s=batch_wait_s,
            on_change=self._change,
        )

    def _change(self) -> None:
        self.num_changes += 1

    async def _compute(self, keys: Sequence[bytes], texts: Sequence[bytes]) -> None:
        assert [b"key of " + text for text in texts] == list(keys)
        self.batches.append(list(texts))
        await self.gate.wait()
        if any(b"bad" in text for text in texts):
            raise BadTextError(ServiceProblem(422, "not_encodable", "it is bad"))
        if b"no store" in texts:
            raise StoreError("the disk is full")
        if b"bug" in texts:
            raise ZeroDivisionError

    def request(self, *texts: bytes) -> list[asyncio.Future[Failure | None]]:
        return self.batcher.request({b"key of " + text: text for text in texts})

    async def ask(self, *texts: bytes) -> list[int]:
        """The statuses of some texts, once they have any: 200 for one that is computed."""
        outcomes = self.request(*texts)
        await asyncio.wait(outcomes)
        failures = [outcome.result() for outcome in outcomes]
        return [200 if failure is None else failure.problem.status for failure in failures]


def run_on(scenario: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await scenario()

    asyncio.run(run())


def test_a_text_that_many_ask_for_is_computed_once() -> None:
    async def scenario() -> None:
        bench = Bench()
        statuses = await asyncio.gather(*(bench.ask(b"one") for _ in range(1000)))
        assert statuses == [[200]] * 1000
        assert bench.batches == [[b"one"]]
        # What is done is done: who asks now means it.
        assert await bench.ask(b"one") == [200]
        assert len(bench.batches) == 2

    run_on(scenario)


def test_a_text_is_joined_while_it_is_being_computed() -> None:
    async def scenario() -> None:
        bench = Bench()
        bench.gate.clear()
        first = asyncio.create_task(bench.ask(b"one"))
        await until(lambda: bench.batches)
        second = asyncio.create_task(bench.ask(b"one", b"two"))
        await asyncio.sleep(0)
        assert bench.batcher.count_new([b"key of one", b"key of two", b"key of three"]) == 1
        assert bench.batcher.num_waiting == 1
        bench.gate.set()
        assert [await first, await second] == [[200], [200, 200]]
        assert bench.batches == [[b"one"], [b"two"]]

    run_on(scenario)


def test_texts_of_different_requests_make_one_batch() -> None:
    async def scenario() -> None:
        bench = Bench(batch_wait_s=0.05)
        assert bench.batcher.is_idle
        asking = [asyncio.create_task(bench.ask(b"%d" % number)) for number in range(3)]
        await asyncio.sleep(0.01)
        asking.append(asyncio.create_task(bench.ask(b"late")))
        await asyncio.gather(*asking)
        assert bench.batches == [[b"0", b"1", b"2", b"late"]]
        assert bench.batcher.is_idle

    run_on(scenario)


def test_what_comes_while_a_batch_is_computed_is_the_next_one() -> None:
    async def scenario() -> None:
        bench = Bench()
        bench.gate.clear()
        asking = [asyncio.create_task(bench.ask(b"first"))]
        await until(lambda: bench.batches)
        for number in range(5):
            asking.append(asyncio.create_task(bench.ask(b"%d" % number)))
            await asyncio.sleep(0.002)
        assert bench.batcher.num_waiting == 5
        bench.gate.set()
        await asyncio.gather(*asking)
        assert bench.batches == [[b"first"], [b"0", b"1", b"2", b"3", b"4"]]
        assert bench.batcher.num_waiting == 0

    run_on(scenario)


def test_a_batch_has_no_more_tokens_than_it_may_and_does_not_wait_when_full() -> None:
    async def scenario() -> None:
        # Would wait for ever if it waited.
        bench = Bench(max_batch_tokens=10, batch_wait_s=1e6)
        texts = [b"%d" % number + 15 * b"x" for number in range(4)]
        assert {estimate_tokens(text) for text in texts} == {5}
        assert await bench.ask(*texts) == [200] * 4
        assert bench.batches == [texts[:2], texts[2:]]

    run_on(scenario)


def test_a_text_larger_than_a_batch_is_one_alone() -> None:
    async def scenario() -> None:
        bench = Bench(max_batch_tokens=10)
        large = 100 * b"x"
        assert await bench.ask(b"a", large, b"b") == [200] * 3
        assert bench.batches == [[b"a"], [large], [b"b"]]

    run_on(scenario)


@pytest.mark.parametrize("place", [0, 3, 7])
def test_one_bad_text_fails_alone(place: int) -> None:
    async def scenario() -> None:
        bench = Bench()
        texts = [b"%d" % number for number in range(8)]
        texts[place] = b"bad"
        wanted = [200] * 8
        wanted[place] = 422
        assert await bench.ask(*texts) == wanted
        # Whole, and then halves: not one by one.
        assert len(bench.batches) == 7

    run_on(scenario)


def test_all_bad_texts_fail_each() -> None:
    async def scenario() -> None:
        bench = Bench()
        assert await bench.ask(b"bad 1", b"good", b"bad 2") == [422, 200, 422]
        (outcome,) = bench.request(b"bad 1")
        await asyncio.wait([outcome])
        failure = outcome.result()
        assert failure is not None
        assert failure.is_of_text
        assert failure.problem.message == "it is bad"

    run_on(scenario)


def test_what_concerns_all_texts_is_not_tried_with_each() -> None:
    async def scenario() -> None:
        bench = Bench()
        assert await bench.ask(b"a", b"no store", b"b") == [503] * 3
        assert await bench.ask(b"a", b"bug", b"b") == [500] * 3
        assert len(bench.batches) == 2
        assert await bench.ask(b"a") == [200]

    run_on(scenario)


def test_who_gives_up_does_not_take_it_from_the_others() -> None:
    async def scenario() -> None:
        bench = Bench()
        bench.gate.clear()
        impatient = asyncio.create_task(bench.ask(b"one"))
        patient = asyncio.create_task(bench.ask(b"one"))
        await until(lambda: bench.batches)
        impatient.cancel()
        await asyncio.wait([impatient])
        bench.gate.set()
        assert await patient == [200]

    run_on(scenario)


def test_draining_waits_for_all_that_was_asked_for() -> None:
    async def scenario() -> None:
        bench = Bench(max_batch_tokens=1)
        bench.gate.clear()
        outcomes = bench.request(b"a", b"b", b"c")
        draining = asyncio.create_task(bench.batcher.drain())
        await asyncio.sleep(0.01)
        assert not draining.done()
        bench.gate.set()
        await draining
        assert [outcome.result() for outcome in outcomes] == [None] * 3
        await bench.batcher.drain()

    run_on(scenario)


def test_every_coming_and_going_is_told() -> None:
    async def scenario() -> None:
        bench = Bench()
        await bench.ask(b"one")
        assert bench.num_changes == 2

    run_on(scenario)
