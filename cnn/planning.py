"""What is trained on what: everything that can be checked before Keras is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cnn.config import ResolvedConfig, TrainConfig
from cnn.labelled import (
    TRAIN_SPLIT,
    Labelled,
    Parts,
    Rows,
    check_classes,
    choose_folds,
    choose_parts,
)
from cnn.leaks import EXACT, NEAR, Leak, find_equal, guard_parts
from cnn.losses import balanced_class_weights
from cnn.near import near_finder
from cnn.saving import check_writable
from cnn.spec import MULTILABEL, ModelSpec
from embedcache.errors import TrainingError
from embedcache.store.dataset import Dataset
from embedcache.store.store import FeatureStore
from embedcache.stream.config import StreamConfig
from embedcache.stream.stream import FeatureStream
from embedcache.stream.token_table import TokenTable


@dataclass(frozen=True, slots=True)
class Plan:
    """What is trained on what.

    Attributes:
        store: The store.
        labelled: The documents with the labels that they have.
        config: With a batch size that the data allows.
        cuts: The parts of each training: one, or one a fold.
        stream: All documents that are used; says the view, dim and dtype.
        leaks: Texts that stand in two parts.
    """

    store: FeatureStore
    labelled: Labelled
    config: ResolvedConfig
    cuts: Sequence[Parts]
    stream: FeatureStream
    leaks: Sequence[Leak]

    @property
    def dataset(self) -> Dataset:
        """The documents."""
        return self.labelled.dataset

    def open_stream(
        self, rows: Rows, *, shuffle: str = "none", table: TokenTable | None = None
    ) -> FeatureStream:
        """A stream of some of the documents."""
        is_shuffled = shuffle != "none"
        return FeatureStream(
            self.store,
            self.dataset,
            view=self.stream.view,
            rows=rows,
            config=StreamConfig(
                batch_size=self.config.batch_size,
                batch_tokens=self.config.batch_tokens,
                length_buckets=self.config.length_buckets and is_shuffled,
                shuffle=shuffle,
                seed=self.config.seed,
            ),
            token_table=table,
            multilabel=self.labelled.task == MULTILABEL,
        )

    def make_table(self, rows: Rows) -> TokenTable | None:
        """The tokens of training texts that have vectors of their own; None if none have.

        Raises:
            TrainingError: if the view has no dictionary.
        """
        if self.config.embedding == "static":
            return None
        reader = self.store.reader(self.stream.view)
        return TokenTable.of_texts(reader, self.dataset.keys[rows])

    def spec(self, table: TokenTable | None) -> ModelSpec:
        """What the model must know of the features and labels."""
        return ModelSpec(
            dim=self.stream.dim,
            num_classes=self.labelled.num_classes,
            dtype=self.stream.dtype,
            num_layers=self.stream.num_layers,
            task=self.labelled.task,
            num_tokens=0 if table is None else len(table.rows) - 1,
        )

    def class_weights(self, rows: Rows) -> Any:
        """The weights of the classes among training documents, (C,); None if all weigh 1."""
        if self.config.class_weights == "none":
            return None
        return balanced_class_weights(self.labelled.targets[rows], self.labelled.num_classes)


def make_plan(
    store: FeatureStore, dataset: Dataset, config: TrainConfig, *, view: str | None
) -> Plan:
    """Check everything that can be checked before the first step.

    Raises:
        UnknownNameError: if there is no such view.
        KeyNotFoundError: if the view lacks some of the texts.
        TrainingError: if labels, splits or configuration do not fit the data.
        StoreReadOnlyError: if the run could not be kept.
    """
    resolved = config.resolved()
    if resolved.folds is None:
        labelled, parts = choose_parts(dataset, resolved)
        cuts = [parts]
    else:
        labelled, cuts = choose_folds(dataset, resolved, resolved.folds)
    _check_batch(dataset, cuts, config)
    used = np.unique(np.concatenate([rows for cut in cuts for rows in cut.by_name().values()]))
    stream = FeatureStream(
        store,
        labelled.dataset,
        view=view,
        rows=used,
        config=StreamConfig(shuffle="none"),
        multilabel=labelled.task == MULTILABEL,
    )
    cuts, leaks = _guard(store, labelled, cuts, resolved, view=stream.view)
    _check_batch(dataset, cuts, config)
    num_train = min(len(cut.train) for cut in cuts)
    resolved = replace(resolved, batch_size=min(resolved.batch_size, num_train))
    check_writable(store)
    plan = Plan(store, labelled, resolved, cuts, stream, leaks)
    _check_embedding(plan)
    return plan


def _guard(
    store: FeatureStore,
    labelled: Labelled,
    cuts: Sequence[Parts],
    config: ResolvedConfig,
    *,
    view: str,
) -> tuple[list[Parts], list[Leak]]:
    """Look for equal and, if asked for, nearly equal texts in two parts."""
    dataset = labelled.dataset

    def find_exact(first: Rows, second: Rows) -> Any:
        return find_equal(dataset.keys, first, second)

    kept, leaks = guard_parts(dataset, cuts, config, kind=EXACT, find=find_exact)
    if config.near_duplicates is not None:
        find = near_finder(store.reader(view), dataset.keys, config.near_duplicates)
        kept, near = guard_parts(dataset, kept, config, kind=NEAR, find=find)
        leaks = leaks + near
    if any(leak.dropped for leak in leaks):
        for cut in kept:
            check_classes(labelled, {TRAIN_SPLIT: cut.train, **cut.by_name()})
    return kept, leaks


def _check_batch(dataset: Dataset, cuts: Sequence[Parts], config: TrainConfig) -> None:
    num_train = min(len(cut.train) for cut in cuts)
    if config.batch_size is not None and config.batch_size > num_train:
        raise TrainingError(
            f"batch size {config.batch_size} is larger than the {num_train} training documents"
            f" of dataset {dataset.name!r}; give a smaller one (--batch-size {min(num_train, 32)})"
        )


def _check_embedding(plan: Plan) -> None:
    """Raise unless the view has what the embedding needs: one layer, and a dictionary."""
    stream, embedding = plan.stream, plan.config.embedding
    if embedding != "static" and stream.num_layers > 1:
        raise TrainingError(
            f"view {stream.view[:12]} keeps {stream.num_layers} layers apart, and --embedding"
            f" {embedding} is for views of one; build one of a context-free module, such as"
            " the bundled one, or leave --embedding out"
        )
    plan.make_table(plan.cuts[0].train)
