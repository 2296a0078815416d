"""ServedRun: a run of the store that answers with predictions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from embedcache.store.database.records import RunRecord
from embedcache.store.store import FeatureStore

_RUN_FILE = "run.json"
_LAST = "last"


@dataclass(frozen=True, slots=True)
class ServedRun:
    """A run that predicts.

    Attributes:
        run: Its name.
        record: What the catalog knows of it.
        labels: The labels that it tells apart, sorted.
    """

    run: str
    record: RunRecord
    labels: tuple[str, ...]


def read_runs(store: FeatureStore, before: Mapping[str, ServedRun]) -> tuple[ServedRun, ...]:
    """The runs of a store, oldest first; without those whose files are missing or damaged.

    Args:
        store: An open store.
        before: Runs that are known, by name: their files are not read again.

    Raises:
        StoreError: if the catalog cannot be read.
    """
    found = [before.get(record.run) or _read_run(store, record) for record in store.catalog.runs()]
    return tuple(run for run in found if run is not None)


def _read_run(store: FeatureStore, record: RunRecord) -> ServedRun | None:
    try:
        details = json.loads((store.layout.runs / record.run / _RUN_FILE).read_bytes())
        return ServedRun(record.run, record, tuple(map(str, details["labels"])))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def choose_run(name: str, known: Sequence[ServedRun]) -> ServedRun | None:
    """The one run of this name, or whose name begins so; ``last`` is the newest."""
    if name == _LAST and known:
        return known[-1]
    exact = [run for run in known if run.run == name]
    found = exact or [run for run in known if name and run.run.startswith(name)]
    return found[0] if len(found) == 1 else None
