"""The hint after a build: another view of the same module has these texts already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from embedcache.errors import EmbedCacheError
from embedcache.explain.differences import OtherView, view_differences
from embedcache.keys import Keys
from embedcache.store.database.records import ShardRecord, ViewRecord
from embedcache.store.shards.shard import Shard
from embedcache.store.store import FeatureStore

_HINT_SHARDS = 64
_HINT_KEYS = 1 << 16
"""Keys that a hint looks up at most, in some 8 ms a view: exact for most builds."""
_HINT_SHARE = 0.5
"""Of the texts that a build computed, the part that must lie under the other view: below it,
that view was not what the user meant."""


@dataclass(frozen=True, slots=True)
class BuildHint:
    """Another view of the same module, or handle, that holds what a build has computed.

    Attributes:
        view: Its fingerprint and in what it differs from the view that was built.
        texts: How many of the texts that were computed it holds.
        computed: How many were computed.
        is_estimate: Whether ``texts`` was estimated from a sample.
    """

    view: OtherView
    texts: int
    computed: int
    is_estimate: bool

    def to_record(self) -> dict[str, Any]:
        """The ``hint`` of ``build --json``."""
        record = asdict(self.view)
        return {"view": record["view"], "texts": self.texts, "differences": record["differences"]}


def hint_of_build(store: FeatureStore, view: str, *, num_shards: int) -> BuildHint | None:
    """What would have spared a build its work: another view that holds the same texts.

    The texts that were missing when a build began are those of the shards that it wrote, so
    they need not be gathered while it runs. Only views of the same module, or of the same
    handle, count: with another module a miss is what was wanted. No store's trouble is worth
    failing a build that is done; it means no hint.

    Args:
        store: The store that was built into.
        view: Fingerprint of the view that was built.
        num_shards: How many shards the build wrote.

    Returns:
        The nearest such view that holds at least half of the texts; None if there is none.
    """
    try:
        records = store.catalog.views()
        (built,) = [record for record in records if record.fingerprint == view]
        kin = [record for record in records if _is_kin(record, built)]
        if not kin or num_shards == 0:
            return None
        # Oldest first: the last ones are this build's, or those of another one of this view
        # that ran beside it, whose texts were as new.
        return _find_hint(store, built, kin, store.catalog.shards(view)[-num_shards:])
    except EmbedCacheError:
        return None


def _find_hint(
    store: FeatureStore,
    built: ViewRecord,
    kin: Sequence[ViewRecord],
    written: Sequence[ShardRecord],
) -> BuildHint | None:
    computed = sum(shard.num_texts for shard in written)
    keys = _sample_keys(store, written)
    best: BuildHint | None = None
    for record in kin:
        num_held = int(np.count_nonzero(store.reader(record).contains(keys)))
        if num_held == 0 or num_held < _HINT_SHARE * len(keys):
            continue
        other = OtherView(record.fingerprint, record.handle, view_differences(record, built))
        num_texts = round(computed * num_held / len(keys))
        hint = BuildHint(other, num_texts, computed, len(keys) < computed)
        if best is None or _nearness(hint) < _nearness(best):
            best = hint
    return best


def _nearness(hint: BuildHint) -> tuple[int, int]:
    return len(hint.view.differences), -hint.texts


def _sample_keys(store: FeatureStore, written: Sequence[ShardRecord]) -> Keys:
    """Keys of some shards, spread evenly.

    The first keys of a shard are a fair sample of it: keys are hashes.
    """
    chosen = written[:: -(-len(written) // _HINT_SHARDS)]
    share = -(-_HINT_KEYS // len(chosen))
    parts = [
        Shard(store.layout.shard_path(record.view, record.digest)).keys[:share] for record in chosen
    ]
    return np.concatenate(parts)


def _is_kin(record: ViewRecord, built: ViewRecord) -> bool:
    if record.fingerprint == built.fingerprint:
        return False
    same_module = record.view.module_digest == built.view.module_digest
    return same_module or (bool(built.handle) and record.handle == built.handle)
