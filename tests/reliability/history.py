"""Writing that tells what was acknowledged, and the oracle that looks for it after."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from embedcache.errors import EmbedCacheError
from embedcache.keys import keys_of_texts
from embedcache.store.database.records import DatasetRecord
from embedcache.store.dataset import DatasetWriter
from embedcache.store.store import FeatureStore, open_store
from embedcache.store.upkeep.maintain import verify_store
from embedcache.store.writer import WriterLimits
from embedcache.view import FeatureView
from tests.embedcache.store.programs import VIEW, add_texts, matrix_of, put
from tests.reliability.outcome import Findings
from tests.reliability.processes import Tell

WIDE_VIEW = replace(VIEW, dim=2048)
"""Its shards are large enough to be cut while they are written."""

ACKNOWLEDGE_BEFORE_COMMIT = "acknowledge-before-commit"


class TellingWriter:
    """A `ShardWriter` that tells each text once it is acknowledged.

    Texts are acknowledged when `flush` returns, or when their shard, which closed by itself,
    is among `ShardWriter.published`: shards hold the texts in the order in which they came.
    """

    def __init__(
        self, store: FeatureStore, view: FeatureView, tell: Tell, *, max_texts: int, bug: str = ""
    ) -> None:
        self._writer = store.writer(view, limits=WriterLimits(max_texts=max_texts))
        self._dim = view.dim
        self._tell = tell
        self._bug = bug
        self._added: list[str] = []
        self._num_told = 0

    def add(self, texts: Sequence[str]) -> None:
        """Add texts; when the open shard is due, a thread publishes it."""
        add_texts(self._writer, texts, dim=self._dim)
        self._added += texts
        if self._bug == ACKNOWLEDGE_BEFORE_COMMIT:
            self._tell_up_to(len(self._added))
        self._writer.close_if_due()
        self._tell_up_to(sum(record.num_texts for record in self._writer.published))

    def flush(self) -> None:
        """Close the open shard."""
        self._writer.flush()
        self._tell_up_to(len(self._added))

    def _tell_up_to(self, count: int) -> None:
        if count > self._num_told:
            self._tell("texts", *self._added[self._num_told : count])
            self._num_told = count


def register_dataset(
    store: FeatureStore, name: str, texts: Sequence[str], view: FeatureView = VIEW
) -> None:
    """Register texts as a dataset, as a build does."""
    with DatasetWriter(store.layout.tmp) as documents:
        documents.add(keys_of_texts(texts), None, None, None)
        version, num_unique = documents.finish()
        documents.publish(store.layout.dataset_path(version))
    record = DatasetRecord(name, version, len(texts), num_unique, [], created_at=0.0)
    store.catalog.add_dataset(record, view=view.fingerprint, report={})


@dataclass(slots=True)
class Acknowledged:
    """What a store must have: texts by the view's width, and names of datasets."""

    texts: dict[int, list[str]] = field(default_factory=dict)
    datasets: list[str] = field(default_factory=list)

    def add_texts(self, texts: Sequence[str], view: FeatureView = VIEW) -> None:
        self.texts.setdefault(view.dim, []).extend(texts)

    def __len__(self) -> int:
        return sum(map(len, self.texts.values())) + len(self.datasets)


def check_store(
    path: Path, acknowledged: Acknowledged, findings: Findings, *, where: str, append: str = ""
) -> None:
    """The oracle: all that was acknowledged is there, and nothing catalogued is not whole.

    Args:
        path: The store's folder.
        acknowledged: What must be there.
        findings: Takes what is not as it must be.
        where: At which point of the harness.
        append: If given, a text with this name is put in, which has to work.
    """
    try:
        # Where something was acknowledged, the store opens as it is: nothing is made anew.
        with open_store(path, create=not len(acknowledged)) as store:
            for dim, texts in acknowledged.texts.items():
                _check_texts(store, replace(VIEW, dim=dim), texts, findings, where)
            for name in acknowledged.datasets:
                if len(store.load_dataset(name)) == 0:
                    findings.add_lost(where, f"dataset {name} is empty")
            report = verify_store(store)
            for fault in (*report.corrupt, *report.missing):
                findings.add_wrong(where, f"catalogued and not whole: {fault}")
        if append:
            with open_store(path) as store:
                put(store, [append])
                _check_texts(store, VIEW, [append], findings, where)
    except EmbedCacheError as error:
        findings.add_lost(where, f"the store cannot be used: {type(error).__name__}: {error}")
    except Exception:  # a traceback is what no user may see
        findings.add_crashed(where, f"while looking at it: {traceback.format_exc()[-300:]}")


def _check_texts(
    store: FeatureStore, view: FeatureView, texts: Sequence[str], findings: Findings, where: str
) -> None:
    present = store.contains(view, texts)
    there = [text for text, is_there in zip(texts, present, strict=True) if is_there]
    if len(there) < len(texts):
        gone = sorted(set(texts) - set(there))
        findings.add_lost(where, f"not there: {gone[:3]}", len(texts) - len(there))
    features = store.get(view, there)
    differing = [
        text
        for text, matrix in zip(there, features, strict=True)
        if not np.array_equal(matrix, matrix_of(text, view.dim))
    ]
    if differing:
        findings.add_wrong(where, f"not their matrices: {differing[:3]}", len(differing))
