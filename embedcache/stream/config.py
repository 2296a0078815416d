"""StreamConfig: how a stream shuffles and cuts its texts into batches."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any

from embedcache.stream.batch import LENGTH_STEP

SHUFFLES = ("auto", "full", "block", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamConfig:
    """How a stream shuffles and cuts its texts into batches.

    Attributes:
        batch_size: Texts in a batch, at most.
        batch_tokens: Tokens of a batch at most, padding counted: B × L. None: no bound. A
            text whose padded length is above it is a batch of its own. A token takes
            ``stream.row_bytes`` bytes: of a wide view this, not ``batch_size``, is what bounds
            a batch's memory.
        shuffle: ``"full"``: each epoch has an order of its own, any of all orders.
            ``"block"``: blocks of some MiB, texts that lie side by side in a shard, are drawn
            in a random order, and each window of several blocks is shuffled as one: what is
            read at a time is bounded. ``"auto"``: full where the features that the stream
            needs fit into memory, else block; the logger ``embedcache.stream`` says which.
            ``"none"``: corpus order. True is ``"auto"``, False ``"none"``.
        length_buckets: Sort a window of the shuffled texts by length, ties at random, before
            it is cut into batches, and shuffle the batches' order: less padding.
        window_texts: Texts of a window of ``"block"``, and of a window that is sorted by
            length. None: 256 MiB of features, and 64 batches.
        seed: What the orders depend on, with the epoch's number.
        worker: Which of several streams this is that share an epoch, from 0 on.
        num_workers: How many they are.

    Raises:
        ValueError: if a field has no legal value, or two do not go together.
    """

    batch_size: int = 64
    batch_tokens: int | None = None
    shuffle: str | bool = "auto"
    length_buckets: bool = False
    window_texts: int | None = None
    seed: int = 0
    worker: int = 0
    num_workers: int = 1

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {
            "batch_size": _integer("batch_size", self.batch_size, low=1),
            "batch_tokens": _integer("batch_tokens", self.batch_tokens, low=LENGTH_STEP),
            "shuffle": _shuffle(self.shuffle),
            "window_texts": _integer("window_texts", self.window_texts, low=1),
            "seed": _integer("seed", self.seed, low=0),
            "num_workers": _integer("num_workers", self.num_workers, low=1),
            "worker": _integer("worker", self.worker, low=0, high=int(self.num_workers) - 1),
        }
        for name, value in checked.items():
            # A NumPy number, as a sweep gives, becomes Python's: JSON knows no other.
            object.__setattr__(self, name, value)
        if self.shuffle == "none" and self.length_buckets:
            raise ValueError(
                "length_buckets changes the order and shuffle='none' keeps that of the corpus:"
                " choose one of them"
            )
        if self.window_texts is not None and not self._may_have_window:
            raise ValueError(
                f"window_texts is for shuffle='block' and for length_buckets: leave it out with"
                f" shuffle={self.shuffle!r}"
            )

    @property
    def _may_have_window(self) -> bool:
        return self.length_buckets or self.shuffle in ("block", "auto")


def _shuffle(value: object) -> str:
    if isinstance(value, bool):
        return "auto" if value else "none"
    if value not in SHUFFLES:
        raise ValueError(f"shuffle must be one of {', '.join(SHUFFLES)}: got {value!r}")
    return str(value)


def _integer(name: str, value: object, *, low: int, high: int | None = None) -> int | None:
    if value is None and name in ("batch_tokens", "window_texts"):
        return None
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise ValueError(f"{name} must be an integer: got {value!r}")  # noqa: TRY004 - as the rest
    number = int(value)
    if number < low or (high is not None and number > high):
        limit = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} must be {limit}: got {number}")
    return number
