"""A writer's shards that are not durable yet: the one being filled, and the one being written."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from embedcache.store.shards.ordering import Part


class PendingKeys:
    """Keys that a writer has taken and that are not durable yet.

    Ask it before the store: a key goes from here to there, and never the other way.
    """

    def __init__(self, *groups: set[bytes]) -> None:
        self._groups = groups

    def __contains__(self, key: bytes) -> bool:
        return any(key in group for group in self._groups)

    def __len__(self) -> int:
        return sum(map(len, self._groups))

    def isdisjoint(self, keys: Iterable[bytes]) -> bool:
        """Whether none of the keys is pending."""
        return all(group.isdisjoint(keys) for group in self._groups)


@dataclass(slots=True)
class OpenShard:
    """What was added since the last shard was closed."""

    parts: list[Part] = field(default_factory=list)
    keys: set[bytes] = field(default_factory=set)
    table: NDArray[Any] | None = None
    num_bytes: int = 0
    opened_at: float = 0.0


class Publication:
    """A shard that is being published by a thread of its own, or none.

    Attributes:
        shard: The shard; an empty one once it is published, and the same if that failed.
    """

    def __init__(
        self,
        shard: OpenShard | None = None,
        publish: Callable[[OpenShard], None] = lambda _shard: None,
    ) -> None:
        self.shard = shard or OpenShard()
        self._publish = publish
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        if shard is not None:
            self._thread = threading.Thread(target=self._run, name="publish-shard")
            self._thread.start()

    def _run(self) -> None:
        try:
            self._publish(self.shard)
            self.shard = OpenShard()
        except BaseException as error:
            self._error = error

    def wait(self) -> None:
        """Return once it is published; what went wrong is raised here, once."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error
