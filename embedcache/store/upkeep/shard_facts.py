"""How a shard is laid out, from its file's metadata."""

from __future__ import annotations

from dataclasses import dataclass

from embedcache.store.shards.format import TOKEN_DATASETS
from embedcache.store.shards.shard import Shard

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


def shard_facts(shard: Shard) -> ShardFacts:
    """How a shard is laid out; nothing of its file is read again."""
    counted = [
        place.num_bytes
        for name, place in shard.places.items()
        if name in _PER_TOKEN and not (name == "scales" and shard.is_dictionary)
    ]
    rows = "codes" if shard.is_dictionary else "values"
    kind = [rows, *(name for name in TOKEN_DATASETS if name in shard.places)]
    is_compressed = any(place.offset is None for place in shard.places.values())
    return ShardFacts(tuple(kind), is_compressed, sum(counted))
