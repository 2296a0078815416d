"""embedcache: pay for the frozen embedding once; iterate on the CNN for free.

The public names are resolved when they are first used: importing the package loads
neither TensorFlow nor Keras.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedcache.client.store import connect
    from embedcache.errors import EmbedCacheError
    from embedcache.exchange.exporting import ExportReport, export_dataset
    from embedcache.exchange.importing import ImportReport, import_features
    from embedcache.explain import Explanation, explain_text
    from embedcache.precompute import BuildReport, build, embed
    from embedcache.ragged import RaggedArray
    from embedcache.store.store import FeatureStore, open_store
    from embedcache.stream.batch import Batch
    from embedcache.stream.config import StreamConfig
    from embedcache.stream.state import StreamState
    from embedcache.stream.stream import FeatureStream
    from embedcache.stream.token_table import TokenTable
    from embedcache.view import FeatureView

__version__ = "0.1.0"

_HOMES = {
    "Batch": "embedcache.stream.batch",
    "BuildReport": "embedcache.precompute",
    "EmbedCacheError": "embedcache.errors",
    "Explanation": "embedcache.explain",
    "ExportReport": "embedcache.exchange.exporting",
    "FeatureStore": "embedcache.store.store",
    "FeatureStream": "embedcache.stream.stream",
    "FeatureView": "embedcache.view",
    "ImportReport": "embedcache.exchange.importing",
    "RaggedArray": "embedcache.ragged",
    "StreamConfig": "embedcache.stream.config",
    "StreamState": "embedcache.stream.state",
    "TokenTable": "embedcache.stream.token_table",
    "build": "embedcache.precompute",
    "connect": "embedcache.client.store",
    "embed": "embedcache.precompute",
    "explain_text": "embedcache.explain",
    "export_dataset": "embedcache.exchange.exporting",
    "import_features": "embedcache.exchange.importing",
    "open_store": "embedcache.store.store",
}

__all__ = [
    "Batch",
    "BuildReport",
    "EmbedCacheError",
    "Explanation",
    "ExportReport",
    "FeatureStore",
    "FeatureStream",
    "FeatureView",
    "ImportReport",
    "RaggedArray",
    "StreamConfig",
    "StreamState",
    "TokenTable",
    "build",
    "connect",
    "embed",
    "explain_text",
    "export_dataset",
    "import_features",
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
