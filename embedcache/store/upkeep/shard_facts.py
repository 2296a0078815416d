"""How a shard is laid out, from its file's metadata."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py

from embedcache.store.shards.damage import mapped_read_errors
from embedcache.store.shards.format import SMALL_DATASETS, TOKEN_DATASETS

_PER_TOKEN = ("values", "scales", "codes", "spans", "token_ids")


@dataclass(frozen=True, slots=True)
class ShardFacts:
    """How a shard is laid out.

    Attributes:
        kind: The datasets of its tokens, which a writer keeps apart: ``"values"`` or
            ``"codes"``, then those of ``"spans"`` and ``"token_ids"`` that it has.
        is_compressed: Whether any of them is.
        num_bytes: Of its tokens before compression, as a writer counts them.
    """

    kind: tuple[str, ...]
    is_compressed: bool
    num_bytes: int

    @property
    def rows(self) -> str:
        """The dataset of its rows: ``"values"``, or ``"codes"`` of a dictionary."""
        return "codes" if "codes" in self.kind else "values"

    @property
    def compression(self) -> str:
        """``"zstd"`` or ``"none"``."""
        return "zstd" if self.is_compressed else "none"


def shard_facts(path: Path) -> ShardFacts:
    """How the shard in a file is laid out; the file has been opened as a `Shard` before.

    Raises:
        CorruptShardError: if it cannot be read any more.
    """
    with mapped_read_errors(path), h5py.File(path, "r", locking=False) as file:
        datasets = {name: file[name] for name in file if name not in SMALL_DATASETS}
        is_dictionary = "codes" in datasets
        counted = [
            dataset.nbytes
            for name, dataset in datasets.items()
            if name in _PER_TOKEN and not (name == "scales" and is_dictionary)
        ]
        rows = "codes" if is_dictionary else "values"
        kind = [rows, *(name for name in TOKEN_DATASETS if name in datasets)]
        is_compressed = any(dataset.chunks is not None for dataset in datasets.values())
        return ShardFacts(tuple(kind), is_compressed, sum(counted))
