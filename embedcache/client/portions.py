"""Portions: many things asked of a service in requests that are not too large for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus

import numpy as np
from numpy.typing import NDArray

from embedcache.client.connection import Answer, Connection, Request


class Portions:
    """Cuts what is asked for into requests, and smaller ones where the service refuses (413).

    What it has refused is remembered, for the requests after. Any threads.

    Args:
        connection: To the service.
        max_items: Texts or keys of a request at most.
        max_bytes: Of a request or an answer at most, whichever the items are weighed by.
    """

    def __init__(self, connection: Connection, *, max_items: int, max_bytes: int) -> None:
        self._connection = connection
        self._max_items = max_items
        self._max_bytes = max_bytes

    def ask(
        self, sizes: Sequence[int] | NDArray[np.int64], request_of: Callable[[slice], Request]
    ) -> Iterator[tuple[slice, Request, Answer]]:
        """The answers, one after the other, each with its request and the items asked for.

        Args:
            sizes: Bytes of each item, (n,).
            request_of: Makes the request of some items; one that allows status 413.

        Raises:
            ServiceError: if a request of one item is too large, or something else goes wrong.
        """
        ends = np.cumsum(sizes)
        start, num_items = 0, len(ends)
        while start < num_items:
            before = int(ends[start - 1]) if start else 0
            stop = int(np.searchsorted(ends, before + self._max_bytes, side="right"))
            stop = max(start + 1, min(stop, start + self._max_items, num_items))
            request = request_of(slice(start, stop))
            answer = self._connection.ask(request)
            if answer.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
                if stop == start + 1:
                    raise self._connection.refusal(answer)
                self._shrink(answer, stop - start, int(ends[stop - 1]) - before)
                continue
            yield slice(start, stop), request, answer
            start = stop

    def _shrink(self, answer: Answer, num_items: int, num_bytes: int) -> None:
        code, _ = answer.problem
        if not code or code.startswith("too_many"):
            self._max_items = num_items // 2
        else:
            # Both, so that items that weigh nothing become fewer too.
            self._max_bytes = max(1, num_bytes // 2)
            self._max_items = min(self._max_items, max(1, num_items - 1))
