"""What a classifier has to beat: the majority class, logistic regression, a random embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cnn.config import TrainConfig
from cnn.labelled import Labelled, Parts, choose_folds, choose_parts
from cnn.sweeps.plan import LINEAR, RANDOM, SweepPoint
from cnn.sweeps.view_axes import NamedView
from embedcache.store.dataset import Dataset
from embedcache.store.store import FeatureStore

_KEPT_BY_LINEAR = (
    "batch_size", "class_weights", "dev_fraction", "epochs", "folds", "near_duplicates",
    "on_leak", "patience", "task",
)  # fmt: skip
"""Fields that say what is trained on and how long, and not what the network looks like."""


@dataclass(frozen=True, slots=True)
class MajorityScore:
    """How often the most frequent class of the training texts is right.

    Attributes:
        dev: On the dev part; with folds the mean over them.
        test: On the test part; None if there is none.
    """

    dev: float
    test: float | None


def majority_score(dataset: Dataset, config: TrainConfig) -> MajorityScore:
    """What saying the same of every text would give.

    Of texts with several labels it is the most frequent set of labels.

    Raises:
        TrainingError: if the dataset cannot be trained on so.
    """
    resolved = config.resolved()
    if resolved.folds is None:
        labelled, parts = choose_parts(dataset, resolved)
        cuts = [parts]
    else:
        labelled, cuts = choose_folds(dataset, resolved, resolved.folds)
    scores = [_score_cut(labelled, cut) for cut in cuts]
    tests = [score.test for score in scores if score.test is not None]
    dev = float(np.mean([score.dev for score in scores]))
    return MajorityScore(dev, float(np.mean(tests)) if tests else None)


def baseline_points(
    store: FeatureStore,
    dataset: Dataset,
    views: Sequence[NamedView],
    fixed: Mapping[str, Any],
) -> tuple[list[SweepPoint], list[str]]:
    """The points to compare with, and a line for each that there cannot be.

    Args:
        store: An open store.
        dataset: With its labels.
        views: Those of the sweep: each gets its own.
        fixed: The settings that all points of the sweep share.
    """
    points, notes = [], []
    plain = {name: value for name, value in fixed.items() if name in _KEPT_BY_LINEAR}
    for named in views:
        points.append(SweepPoint({"preset": LINEAR, **plain}, named.view, named.label, LINEAR))
        reason = _no_random_embedding(store, dataset, named.view)
        if reason is None and fixed.get("preset") != LINEAR:
            settings = {**fixed, "embedding": "rand"}
            points.append(SweepPoint(settings, named.view, named.label, RANDOM))
        elif reason is not None:
            notes.append(f"no random embedding to compare with: {reason}")
    return points, notes


def _no_random_embedding(store: FeatureStore, dataset: Dataset, view: str) -> str | None:
    """Why a view has no tokens that a random embedding could be drawn for; None: it has."""
    reader = store.reader(view)
    refs = reader.locate(dataset.keys)
    located = refs.take(np.flatnonzero(refs.shards >= 0))
    if any(shard.is_dictionary for shard, *_ in reader.groups(located)):
        return None
    return (
        f"view {view[:12]} keeps no dictionary of tokens: its rows depend on their texts, or were"
        " built with --encoding dense"
    )


def _score_cut(labelled: Labelled, cut: Parts) -> MajorityScore:
    parts = cut.by_name()
    # All at once: sets of labels are numbered among the rows that are asked for.
    strata = labelled.strata(np.concatenate(list(parts.values())))
    ends = np.cumsum([len(rows) for rows in parts.values()])
    by_part = dict(zip(parts, np.split(strata, ends[:-1]), strict=True))
    most = int(np.bincount(by_part["train"]).argmax())
    test = float(np.mean(by_part["test"] == most)) if "test" in by_part else None
    return MajorityScore(float(np.mean(by_part["dev"] == most)), test)
