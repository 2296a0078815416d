"""The catalog: what the store knows of views, shards, datasets and runs, in SQL."""
