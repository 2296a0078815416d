"""MissBatcher: each missing text is computed once, and together with those of other requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from embedcache.errors import EmbedCacheError
from embedcache.service.errors import ServiceProblem, problem_of

_BYTES_PER_TOKEN = 4
"""Of English, for tokenizers of word pieces; it need not be right, only bounded."""


class BadTextError(EmbedCacheError):
    """One text at least cannot be computed; the others perhaps can, without it.

    Args:
        problem: What is to be answered, if there is no other text.
    """

    def __init__(self, problem: ServiceProblem) -> None:
        super().__init__(problem.message)
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a text has not been computed.

    Attributes:
        problem: What the request is answered with.
        is_of_text: Whether it is the text's own fault, and not the module's or the store's.
    """

    problem: ServiceProblem
    is_of_text: bool


Outcome = asyncio.Future[Failure | None]
"""Of one text: None, once it is durable and can be read."""

ComputeTexts = Callable[[Sequence[bytes], Sequence[bytes]], Awaitable[None]]
"""Computes texts, given their keys and their UTF-8; they can be read when it returns.

Raises:
    BadTextError: if it may be the fault of one of them alone.
    EmbedCacheError: if it concerns them all.
"""


@dataclass(slots=True)
class _Waiting:
    """A text that is to be computed."""

    text: bytes
    outcome: Outcome


class MissBatcher:
    """The misses of one view; for one event loop.

    A text that is waiting, or is being computed, is not computed again for another request.
    Texts wait for each other a few milliseconds, and for as long as a batch is being computed.
    Nothing that was asked for is given up, also where nobody waits for it any more.

    Args:
        compute: Computes a batch.
        max_batch_tokens: Of a batch, but for a text that has more alone; see `estimate_tokens`.
        batch_wait_s: Seconds from a text's coming until the batch with it begins, if nothing
            is being computed.
        on_change: Called after texts have come, or have been taken to be computed.
    """

    def __init__(
        self,
        compute: ComputeTexts,
        *,
        max_batch_tokens: int,
        batch_wait_s: float,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._compute = compute
        self._max_batch_tokens = max_batch_tokens
        self._batch_wait_s = batch_wait_s
        self._on_change = on_change
        self._outcomes: dict[bytes, Outcome] = {}
        self._waiting: dict[bytes, _Waiting] = {}
        self._num_tokens = 0
        self._oldest_at = 0.0
        self._is_full = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def num_waiting(self) -> int:
        """Texts that wait for their batch to begin."""
        return len(self._waiting)

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits, and nothing is being computed."""
        return self._task is None

    def count_new(self, keys: Iterable[bytes]) -> int:
        """How many of some distinct keys are neither waiting nor being computed."""
        return sum(key not in self._outcomes for key in keys)

    def request(self, texts: Mapping[bytes, bytes]) -> list[Outcome]:
        """Have texts computed; those that are on their way are joined.

        Args:
            texts: Key → UTF-8.

        Returns:
            A future for each, in their order. It never fails: see `Failure`. Others wait for
            it too: it must not be cancelled.
        """
        for key, text in texts.items():
            if key not in self._outcomes:
                self._add(key, text)
        if self._waiting and self._task is None:
            self._task = asyncio.create_task(self._run())
        self._on_change()
        return [self._outcomes[key] for key in texts]

    async def drain(self) -> None:
        """Wait until all that was asked for is computed, or has failed."""
        while self._task is not None:
            await asyncio.wait([self._task])

    def _add(self, key: bytes, text: bytes) -> None:
        if not self._waiting:
            self._oldest_at = time.monotonic()
        outcome: Outcome = asyncio.get_running_loop().create_future()
        self._outcomes[key] = outcome
        self._waiting[key] = _Waiting(text, outcome)
        self._num_tokens += estimate_tokens(text)
        if self._num_tokens >= self._max_batch_tokens:
            self._is_full.set()

    async def _run(self) -> None:
        try:
            while self._waiting:
                await self._wait_for_more()
                batch = self._take_batch()
                self._on_change()
                await self._settle(list(batch), list(batch.values()))
        finally:
            self._task = None

    async def _wait_for_more(self) -> None:
        """Wait for a full batch, as long as its first text may wait."""
        left_s = self._oldest_at + self._batch_wait_s - time.monotonic()
        if left_s > 0 and not self._is_full.is_set():
            waiting = asyncio.ensure_future(self._is_full.wait())
            await asyncio.wait([waiting], timeout=left_s)
            waiting.cancel()

    def _take_batch(self) -> dict[bytes, _Waiting]:
        """The texts that have waited longest, up to the budget; one at least."""
        batch: dict[bytes, _Waiting] = {}
        num_tokens = 0
        for key, item in self._waiting.items():
            num_tokens += estimate_tokens(item.text)
            if batch and num_tokens > self._max_batch_tokens:
                break
            batch[key] = item
        for key, item in batch.items():
            del self._waiting[key]
            self._num_tokens -= estimate_tokens(item.text)
        if self._num_tokens < self._max_batch_tokens:
            self._is_full.clear()
        return batch

    async def _settle(self, keys: Sequence[bytes], batch: Sequence[_Waiting]) -> None:
        """Compute some texts and tell their outcomes; halved, where one of them is bad."""
        failure = await self._failure_of(keys, [item.text for item in batch])
        if failure is not None and failure.is_of_text and len(batch) > 1:
            middle = len(batch) // 2
            await self._settle(keys[:middle], batch[:middle])
            await self._settle(keys[middle:], batch[middle:])
            return
        for key, item in zip(keys, batch, strict=True):
            del self._outcomes[key]
            item.outcome.set_result(failure)

    async def _failure_of(self, keys: Sequence[bytes], texts: Sequence[bytes]) -> Failure | None:
        try:
            await self._compute(keys, texts)
        except BadTextError as error:
            return Failure(error.problem, is_of_text=True)
        except EmbedCacheError as error:
            return Failure(problem_of(error), is_of_text=False)
        except Exception as error:  # the last boundary: whoever waits must hear of it
            problem = ServiceProblem(500, "internal", f"unexpected {type(error).__name__}")
            return Failure(problem, is_of_text=False)
        return None


def estimate_tokens(text: bytes) -> int:
    """About how many tokens a text has, without a tokenizer."""
    return 1 + len(text) // _BYTES_PER_TOKEN
