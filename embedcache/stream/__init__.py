"""Features in motion: epoch order and padded batches; NumPy in, NumPy out."""

from embedcache.stream.batch import Batch
from embedcache.stream.config import StreamConfig
from embedcache.stream.prefetch import Prefetcher
from embedcache.stream.state import StreamState
from embedcache.stream.stream import FeatureStream
from embedcache.stream.token_table import TokenTable

__all__ = ["Batch", "FeatureStream", "Prefetcher", "StreamConfig", "StreamState", "TokenTable"]
