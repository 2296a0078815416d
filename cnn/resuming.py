"""What was asked of a training, and whether an unfinished one can go on as asked."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnn.checkpoints import Snapshot
from cnn.config import TrainConfig
from embedcache.errors import TrainingError, UnknownNameError
from embedcache.store.dataset import Dataset
from embedcache.store.store import FeatureStore

_LABEL_CODES = "labels.codes"

_log = logging.getLogger("cnn.resuming")


@dataclass(frozen=True, slots=True)
class Request:
    """The arguments of `cnn.train` that say what is trained on what."""

    dataset: str | Dataset | None = None
    config: TrainConfig | None = None
    view: str | None = None
    labels: Sequence[str] | None = None
    name: str | None = None
    tags: Mapping[str, str] | None = None

    @property
    def asked(self) -> str | None:
        """How the dataset was named, so that it can be looked up again."""
        if isinstance(self.dataset, Dataset):
            return f"{self.dataset.name}@{self.dataset.version}"
        return self.dataset

    def load_dataset(self, store: FeatureStore) -> Dataset:
        """The dataset that is asked for.

        Raises:
            UnknownNameError: if there is none.
        """
        if isinstance(self.dataset, Dataset):
            return self.dataset
        return store.load_dataset(self.dataset)


def labels_record(
    labels: Sequence[str] | None,
) -> tuple[list[str] | None, dict[str, NDArray[np.int32]]]:
    """Labels that the caller gave, for a checkpoint: their names, and a code a document."""
    if labels is None:
        return None, {}
    names = sorted(set(labels))
    places = {name: place for place, name in enumerate(names)}
    codes = np.fromiter((places[label] for label in labels), np.int32, len(labels))
    return names, {_LABEL_CODES: codes}


def resumed_request(store: FeatureStore, snapshot: Snapshot, request: Request) -> Request:
    """What an unfinished training was asked, once it is known that nothing else is asked now.

    Raises:
        TrainingError: if something else is asked now, or the name of the dataset means
            another version by now.
        UnknownNameError: if its dataset is not there any more.
    """
    about = snapshot.about
    run, known = about["run"], about["dataset"]
    version = f"{known['name']}@{known['version']}"
    _check_dataset(store, run, known, request)
    if request.view is not None and not about["view"].startswith(request.view):
        raise _changed(run, "view", about["view"][:12], request.view)
    if request.config is not None:
        _check_config(run, about["config"], request.config)
    if request.name not in (None, run):
        raise _changed(run, "name", run, request.name)
    if request.tags is not None and dict(request.tags) != about["tags"]:
        raise _changed(run, "tags", about["tags"], dict(request.tags))
    labels = _labels_of(snapshot)
    if request.labels is not None and list(request.labels) != labels:
        raise TrainingError(
            f"run {run} cannot go on: the labels given are not those that it was begun with; give"
            " none with --resume, or train again without it"
        )
    return replace(
        request,
        dataset=version if not isinstance(request.dataset, Dataset) else request.dataset,
        config=TrainConfig(**about["config"]),
        view=about["view"],
        labels=labels,
    )


def check_versions(run: str, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raise unless a training goes on with the backend and the versions that it was begun with.

    Args:
        run: Its name.
        before: Versions of embedcache, Keras and the backend, by name; ``backend`` names it.
        now: The same, as they are now.

    Raises:
        TrainingError: if one of them differs; names both.
    """
    if before != now:
        raise TrainingError(
            f"run {run} cannot go on: {_differing(before, now)} was what it was begun with, now"
            f" there is {_differing(now, before)}; go back to that (KERAS_BACKEND="
            f"{before['backend']} chooses the backend), or train again without --resume"
        )


def check_code(run: str, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Warn if the source code is not what a training was begun with."""
    if before["digest"] != now["digest"]:
        _log.warning(
            "the code of embedcache has changed since run %s was begun: it may not end as it would"
            " have",
            run,
        )


def _check_dataset(
    store: FeatureStore, run: str, known: Mapping[str, Any], request: Request
) -> None:
    if isinstance(request.dataset, Dataset):
        name, version = request.dataset.name, request.dataset.version
    else:
        # A name that was given then must mean the same now; without one it is that dataset.
        asked = request.dataset or known["asked"] or known["name"]
        try:
            found = store.catalog.find_dataset(asked)
        except UnknownNameError as error:
            raise UnknownNameError(f"run {run} cannot go on: {error}") from None
        name, version = found.name, found.version
    if (name, version) != (known["name"], known["version"]):
        raise TrainingError(
            f"run {run} cannot go on: the dataset has changed, {known['name']}@"
            f"{known['version'][:12]} → {name}@{version[:12]}; name the version that it was begun"
            f" with, {known['name']}@{known['version'][:12]}, or train again without --resume"
        )


def _check_config(run: str, before: Mapping[str, Any], config: TrainConfig) -> None:
    after = json.loads(json.dumps(asdict(config)))
    for field, value in asdict(TrainConfig(**before)).items():
        # As JSON values: tuples are lists there.
        old, new = json.loads(json.dumps(value)), after[field]
        if old != new:
            raise _changed(run, field, old, new)


def _changed(run: str, field: str, before: object, after: object) -> TrainingError:
    return TrainingError(
        f"run {run} cannot go on: {field} has changed, {before} → {after}; give what it was begun"
        " with, or nothing, or train again without --resume"
    )


def _labels_of(snapshot: Snapshot) -> list[str] | None:
    names = snapshot.about["labels"]
    if names is None:
        return None
    return [names[code] for code in snapshot.arrays[_LABEL_CODES].tolist()]


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in one.items() if other.get(key) != value)
