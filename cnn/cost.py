"""The cost ledger: what the features cost once, and what a run costs with and without them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from embedcache.store.database.records import BuildRecord
from embedcache.store.store import FeatureStore

_IMPORTED = "imported"


@dataclass(frozen=True, slots=True)
class RunCost:
    """What a run took.

    Attributes:
        seconds: From the first look at the data to the kept run, all sessions together.
        steps: Training steps.
        texts: Texts that went through the model: in every epoch those of train and dev, and
            those of test once.
    """

    seconds: float
    steps: int
    texts: int


def cost_ledger(store: FeatureStore, *, version: str, view: str, run: RunCost) -> dict[str, Any]:
    """What the features cost once, what a run cost, and what it would have cost without them.

    - ``features``: ``seconds``, ``bytes`` and ``texts`` of this dataset version's own builds
      under the view, as the catalog keeps their reports; ``distinct_texts`` of the dataset;
      ``view_bytes``, all the view's shards; ``note``, what is not known, or None.
    - ``run``: the fields of `RunCost`.
    - ``in_loop``: the same run with the module in the loop: every text that goes through
      the model goes through the module first. ``loading_seconds`` is what loading it took, the
      mean of the view's builds that computed any; ``texts_per_second`` what they computed ÷
      the other seconds they took; ``module_seconds = loading_seconds + texts ÷
      texts_per_second``; ``seconds = run.seconds + module_seconds``;
      ``ratio = seconds ÷ run.seconds``; ``ratio_with_features = seconds ÷ (run.seconds +
      features.seconds)``: above 1 this one run has paid for the features. None where the rate
      is not known; ``note`` says why. A build puts each distinct token of a context-free module
      through it once, and sorts the texts of others by length: a loop would be slower than
      this says.

    Args:
        store: An open store.
        version: The dataset's.
        view: The view's fingerprint.
        run: What the run took.
    """
    builds = [build for build in store.catalog.builds() if build.view == view]
    record = store.catalog.find_view(view)
    features = _features(store, builds, version=version, view=view)
    is_imported = record.view.signature == _IMPORTED
    if is_imported:
        features |= {"seconds": None, "note": "imported: what computing them cost is not known"}
    speed = None if is_imported else _speed(builds)
    return {
        "features": features,
        "run": asdict(run),
        "in_loop": _in_loop(run, speed, features["seconds"], is_imported=is_imported),
    }


def _speed(builds: Sequence[BuildRecord]) -> tuple[float, float] | None:
    """Texts a second of the builds that computed any, and the mean seconds to load the module."""
    computing = [build for build in builds if _sum([build], "misses")]
    loading_s = _sum(computing, "loading_seconds")
    seconds = _sum(computing, "seconds") - loading_s
    if not computing or seconds <= 0:
        return None
    return _sum(computing, "misses") / seconds, loading_s / len(computing)


def _features(
    store: FeatureStore, builds: Sequence[BuildRecord], *, version: str, view: str
) -> dict[str, Any]:
    own = [build for build in builds if build.version == version and build.report]
    computed = _sum(own, "misses")
    distinct = {
        record.num_unique for record in store.catalog.datasets() if record.version == version
    }
    num_distinct = max(distinct, default=None)
    note = None
    if not own:
        note = "no report of a build of this dataset under this view: the catalog was lost since"
    elif num_distinct is not None and computed < num_distinct:
        note = (
            f"{num_distinct - int(computed)} of {num_distinct} texts were stored by builds of other"
            " corpora: their seconds and bytes are not in here"
        )
    return {
        "seconds": _sum(own, "seconds") if own else None,
        "bytes": int(_sum(own, "bytes")) if own else None,
        "texts": int(computed) if own else None,
        "distinct_texts": num_distinct,
        "view_bytes": sum(shard.num_bytes for shard in store.catalog.shards(view)),
        "note": note,
    }


def _in_loop(
    run: RunCost,
    speed: tuple[float, float] | None,
    features_s: float | None,
    *,
    is_imported: bool,
) -> dict[str, Any]:
    if speed is None:
        why = "the features were imported" if is_imported else "no build report tells the rate"
        names = (
            "texts_per_second",
            "loading_seconds",
            "module_seconds",
            "seconds",
            "ratio",
            "ratio_with_features",
        )
        return {**dict.fromkeys(names), "note": why}
    rate, loading_s = speed
    module_s = loading_s + run.texts / rate
    whole_s = run.seconds + module_s
    return {
        "texts_per_second": rate,
        "loading_seconds": loading_s,
        "module_seconds": module_s,
        "seconds": whole_s,
        "ratio": whole_s / run.seconds,
        "ratio_with_features": None if features_s is None else whole_s / (run.seconds + features_s),
        "note": None,
    }


def _sum(builds: Sequence[BuildRecord], name: str) -> float:
    """Of a number in the reports of builds; one that is missing counts nothing."""
    values = [build.report.get(name) for build in builds]
    return float(sum(value for value in values if isinstance(value, int | float)))
