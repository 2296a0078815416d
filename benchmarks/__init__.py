"""Benchmarks of embedcache: `python -m benchmarks.run`. See README.md."""
