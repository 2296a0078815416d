"""Features at rest: shards, index, catalog, datasets; `FeatureStore` is the one door."""

from embedcache.store.store import FeatureStore, open_store

__all__ = ["FeatureStore", "open_store"]
