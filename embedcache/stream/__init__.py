"""Features in motion: epoch order and padded batches; NumPy in, NumPy out."""

from embedcache.stream.stream import Batch, FeatureStream

__all__ = ["Batch", "FeatureStream"]
