"""Long texts: which tokens of a text go through the module, and whose rows are kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import EncodingError
from embedcache.store.shards.format import FLAG_TRUNCATED, FLAG_WINDOWED


@dataclass(frozen=True, slots=True)
class Windows:
    """Sequences to run, each a window of a text; most texts have one.

    Positions are those of the text's own tokens. The rows kept of a text's windows, one
    after the other, are those of each of its tokens once.

    Attributes:
        texts: The text of each window, (w,) int64, ascending.
        starts: Its first token, (w,).
        stops: Where it ends, (w,).
        keep_starts: The first token whose row is kept, (w,).
        keep_stops: Where they end, (w,).
        flags: Bits of each text, (n,) uint8: see `plan_windows`.
    """

    texts: NDArray[np.int64]
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    keep_starts: NDArray[np.int64]
    keep_stops: NDArray[np.int64]
    flags: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.texts)


def check_lengths(
    lengths: NDArray[np.int64], limit: int, overflow: str, places: Callable[[int], str]
) -> None:
    """Refuse the first text that is too long, where the view says so.

    Raises:
        EncodingError: names the text's place.
    """
    too_long = lengths > limit
    if overflow == "error" and too_long.any():
        text = int(np.argmax(too_long))
        raise EncodingError(
            f"{places(text)}: {lengths[text]} tokens, the limit is {limit}; raise --max-tokens as"
            " far as the module goes, or use --overflow truncate or window"
        )


def plan_windows(lengths: NDArray[np.int64], *, limit: int, overlap: int, stitch: bool) -> Windows:
    """One window for a text that fits; for a longer one its beginning, or several.

    Args:
        lengths: Tokens of each text, (n,).
        limit: Tokens of a window at most.
        overlap: Tokens that neighbouring windows share; at most half of a window is taken.
        stitch: Whether a longer text gets windows until its end (its flag is
            `FLAG_WINDOWED` then) or is cut (`FLAG_TRUNCATED`).

    Returns:
        Windows of all texts; that of an empty text is empty. Each token of an overlap is
        kept from the window in which it is farther from the edge; the last window ends with
        its text and is as long as the others.
    """
    is_long = lengths > limit
    flags = np.where(is_long, FLAG_WINDOWED if stitch else FLAG_TRUNCATED, 0).astype(np.uint8)
    kept = lengths if stitch else np.minimum(lengths, limit)
    counts = np.ones(len(lengths), np.int64)
    stride = limit - min(overlap, limit // 2)
    if stitch:
        counts += np.where(is_long, -(-(lengths - limit) // stride), 0)
    texts = np.repeat(np.arange(len(lengths)), counts)
    first = np.cumsum(counts) - counts
    number = np.arange(len(texts)) - first[texts]
    stops = np.minimum(number * stride + limit, kept[texts])
    starts = np.maximum(np.minimum(number * stride, stops - limit), 0)
    is_last = number == counts[texts] - 1
    follows = np.append(starts[1:], 0)
    precedes = np.insert(stops[:-1], 0, 0)
    keep_starts = np.where(number == 0, 0, (starts + precedes) // 2)
    keep_stops = np.where(is_last, stops, (follows + stops) // 2)
    return Windows(texts, starts, stops, keep_starts, keep_stops, flags)
