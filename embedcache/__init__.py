"""embedcache: pay for the frozen embedding once; iterate on the CNN for free.

The public names are resolved when they are first used: importing the package loads
neither TensorFlow nor Keras.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedcache.errors import EmbedCacheError
    from embedcache.precompute import BuildReport, build, embed
    from embedcache.ragged import RaggedArray
    from embedcache.store.store import FeatureStore, open_store
    from embedcache.stream.stream import Batch, FeatureStream
    from embedcache.view import FeatureView

__version__ = "0.1.0"

_HOMES = {
    "Batch": "embedcache.stream.stream",
    "BuildReport": "embedcache.precompute",
    "EmbedCacheError": "embedcache.errors",
    "FeatureStore": "embedcache.store.store",
    "FeatureStream": "embedcache.stream.stream",
    "FeatureView": "embedcache.view",
    "RaggedArray": "embedcache.ragged",
    "build": "embedcache.precompute",
    "embed": "embedcache.precompute",
    "open_store": "embedcache.store.store",
}

__all__ = [
    "Batch",
    "BuildReport",
    "EmbedCacheError",
    "FeatureStore",
    "FeatureStream",
    "FeatureView",
    "RaggedArray",
    "build",
    "embed",
    "open_store",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'embedcache' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
