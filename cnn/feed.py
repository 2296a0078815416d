"""BatchFeed and the lengths that batches are padded to, as `embedcache.stream` has them."""

from __future__ import annotations

from embedcache.stream.batch import ladder_length, widen_batch
from embedcache.stream.prefetch import DEPTH
from embedcache.stream.prefetch import Prefetcher as BatchFeed

__all__ = ["DEPTH", "BatchFeed", "ladder_length", "widen_batch"]
