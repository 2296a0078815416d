"""What the trainer feeds from is the stream's own; its tests stand there."""

from __future__ import annotations

from cnn import feed
from embedcache.stream import batch, prefetch


def test_the_feed_is_the_streams_prefetcher() -> None:
    assert feed.BatchFeed is prefetch.Prefetcher
    assert feed.DEPTH == prefetch.DEPTH
    assert feed.widen_batch is batch.widen_batch
    assert feed.ladder_length is batch.ladder_length
