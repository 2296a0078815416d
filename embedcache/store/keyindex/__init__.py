"""The key index of a view: key → shard, row. Derived from the shards."""
