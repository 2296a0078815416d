"""Shards: what a file holds, how it is written, and how it is read."""
