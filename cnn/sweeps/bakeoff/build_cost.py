"""What building the whole of a corpus would cost, by a part of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from embedcache.keys import Keys
from embedcache.precompute import BuildReport
from embedcache.store.store import FeatureStore


@dataclass(frozen=True, slots=True)
class BuildCost:
    """What building costs under one view.

    Attributes:
        texts_per_second: Texts that the module computes in a second once it is loaded; None if
            no build under the view is known that computed any.
        missing: Distinct texts of the whole corpus that the view lacks.
        projected_seconds: That they would take, loading the module left aside; None with it.
        projected_bytes: That they would take in the store, at the size of those that are there.
            Of a module whose rows lie in a dictionary it will be less: words repeat.
    """

    texts_per_second: float | None
    missing: int
    projected_seconds: float | None
    projected_bytes: int

    def to_record(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def cost_of_view(store: FeatureStore, keys: Keys, part: BuildReport) -> BuildCost:
    """What the whole corpus would cost under a view of which a part was built.

    Args:
        store: An open store.
        keys: Of all documents of the whole, (n, 16).
        part: What the build of the part did.
    """
    rate = _rate(part.to_record()) or _earlier_rate(store, part.view)
    distinct = np.unique(keys, axis=0)
    missing = int(np.count_nonzero(~store.reader(part.view).contains(distinct)))
    shards = store.catalog.shards(part.view)
    num_texts = max(1, sum(shard.num_texts for shard in shards))
    bytes_per_text = sum(shard.num_bytes for shard in shards) / num_texts
    return BuildCost(
        texts_per_second=rate,
        missing=missing,
        projected_seconds=None if rate is None else missing / rate,
        projected_bytes=round(missing * bytes_per_text),
    )


def _earlier_rate(store: FeatureStore, view: str) -> float | None:
    """Texts a second of the largest build under a view that computed any, loading left aside."""
    reports = [build.report for build in store.catalog.builds() if build.view == view]
    rated = [report for report in reports if _rate(report) is not None]
    return _rate(max(rated, key=lambda report: int(report["misses"]))) if rated else None


def _rate(report: Mapping[str, Any]) -> float | None:
    """Texts a second that a build computed, loading left aside; None if it computed none."""
    misses = float(report.get("misses", 0))
    seconds = float(report.get("seconds", 0.0)) - float(report.get("loading_seconds", 0.0))
    return misses / seconds if misses and seconds > 0 else None
