"""What of a sweep is planned and done: small files in the store, each whole or not there.

::

    sweeps/NAME/plan.json            what is to be trained
    sweeps/NAME/trials/TRIAL.json    what one trial gave; written once it is in the catalog
    sweeps/NAME/lock                 held by the process that works on it

A trial's run is tagged with the sweep and the trial, so that one whose process was killed
between the catalog and the journal is found again and not trained twice.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cnn.run import RUN_FILE
from cnn.sweeps.plan import SweepPlan
from embedcache.errors import StoreError, TrainingError, UnknownNameError
from embedcache.store.publish import (
    FILE_MODE,
    find_files,
    make_folder,
    mapped_os_errors,
    publish_file,
)
from embedcache.store.store import FeatureStore

SWEEP_TAG = "sweep"
TRIAL_TAG = "trial"
_PLAN = "plan.json"
_SHOWN_NAMES = 10


@dataclass(frozen=True, slots=True)
class TrialResult:
    """What became of a trial.

    Attributes:
        trial: Its digest.
        run: The run's name; None if it failed.
        dev: Scores by name, on the dev part; None if it failed.
        test: On the test part; None if there is none, or it failed.
        seconds: That the training took.
        reason: Why it failed; empty if it did not.
    """

    trial: str
    run: str | None
    dev: Mapping[str, Any] | None
    test: Mapping[str, Any] | None
    seconds: float
    reason: str = ""

    @property
    def is_done(self) -> bool:
        """Whether there is a run."""
        return self.run is not None

    @classmethod
    def of_run(cls, trial: str, record: Mapping[str, Any]) -> TrialResult:
        """The result of a run, by what ``train --json`` printed."""
        return cls(trial, record["run"], record["dev"], record["test"], record["seconds"])

    @classmethod
    def failed(cls, trial: str, reason: str) -> TrialResult:
        """The result of a trial that gave no run."""
        return cls(trial, None, None, None, 0.0, reason)


class Journal:
    """The durable record of one sweep. Constructing it opens nothing.

    Args:
        store: An open store.
        name: The sweep's.
    """

    def __init__(self, store: FeatureStore, name: str) -> None:
        self.name = name
        self._store = store
        self._folder = sweeps_folder(store) / name
        self._trials = self._folder / "trials"

    @property
    def exists(self) -> bool:
        """Whether there is a sweep of this name."""
        with mapped_os_errors(self._folder):
            return (self._folder / _PLAN).is_file()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the sweep: two processes would train the same trials.

        The lock ends with its process, however that ends.

        Raises:
            TrainingError: if another process holds it.
        """
        make_folder(self._folder.parent)
        make_folder(self._folder)
        path = self._folder / "lock"
        with mapped_os_errors(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise TrainingError(
                f"sweep {self.name}: another process is at it; wait for it to end, or look at what"
                f" it has by now with `embedcache sweep --show {self.name}`"
            ) from error
        try:
            yield
        finally:
            os.close(descriptor)

    def save_plan(self, plan: SweepPlan) -> None:
        """Keep what is to be trained, durably, in the place of an earlier plan."""
        self._publish(self._folder / _PLAN, plan.to_record())

    def load_plan(self) -> SweepPlan:
        """What is to be trained.

        Raises:
            UnknownNameError: if there is no sweep of this name; lists those there are.
            StoreError: if its file is damaged.
        """
        if not self.exists:
            names = sweep_names(self._store)[-_SHOWN_NAMES:]
            raise UnknownNameError(
                f"no sweep {self.name!r} in {self._store.path}; there are:"
                f" {', '.join(names) or 'none'}"
            )
        path = self._folder / _PLAN
        try:
            return SweepPlan.from_record(_read_json(path))
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(path, error) from error

    def add(self, result: TrialResult) -> None:
        """Keep what became of a trial, durably."""
        self._publish(self._trials / f"{result.trial}.json", asdict(result))

    def results(self) -> dict[str, TrialResult]:
        """What became of trials, by their digests.

        A run of this sweep that is in the catalog counts, also where a kill came before its file.

        Raises:
            StoreError: if a file is damaged.
        """
        found = {}
        for path in find_files(self._trials, "*.json"):
            try:
                found[path.stem] = TrialResult(**_read_json(path))
            except (TypeError, ValueError) as error:
                raise _damaged(path, error) from error
        known = {result.run for result in found.values()}
        for record in self._store.catalog.runs():
            trial = None if record.run in known else self._trial_of_run(record.run)
            if trial is not None:
                found[trial] = TrialResult.of_run(trial, record.record)
        return found

    def _trial_of_run(self, run: str) -> str | None:
        """The trial of this sweep that a run was tagged with, if it was."""
        try:
            tags = _read_json(self._store.layout.runs / run / RUN_FILE)["tags"]
            return str(tags[TRIAL_TAG]) if tags[SWEEP_TAG] == self.name else None
        except (StoreError, KeyError, TypeError, ValueError):
            return None  # Another's run, or a damaged one: of no use to this sweep.

    def _publish(self, path: Path, record: Mapping[str, Any]) -> None:
        text = json.dumps(dict(record), indent=1) + "\n"  # unsorted: axes keep their order
        make_folder(path.parent)
        publish_file([text.encode()], path, tmp_folder=self._store.layout.tmp)


def sweeps_folder(store: FeatureStore) -> Path:
    """Where the journals of a store's sweeps lie."""
    return store.layout.sweeps


def sweep_names(store: FeatureStore) -> list[str]:
    """The names of a store's sweeps, the one that was begun last at the end."""
    plans = find_files(sweeps_folder(store), f"*/{_PLAN}")
    with mapped_os_errors(sweeps_folder(store)):
        # The lock's file is made once; the plan is written anew by each resume.
        begun = {path.parent.name: (path.parent / "lock").stat().st_mtime_ns for path in plans}
    return sorted(begun, key=lambda name: (begun[name], name))


def newest_sweep(store: FeatureStore, *, dataset: str | None = None) -> str:
    """The name of the sweep that was begun last, of a dataset if one is named.

    Raises:
        UnknownNameError: if there is none.
    """
    for name in reversed(sweep_names(store)):
        if dataset is None or Journal(store, name).load_plan().dataset == dataset:
            return name
    of_dataset = "" if dataset is None else f" of dataset {dataset!r}"
    raise UnknownNameError(
        f"{store.path}: has no sweep{of_dataset} to go on with; begin one with"
        " `embedcache sweep DATASET --grid NAME=V,V`"
    )


def _read_json(path: Path) -> Any:
    with mapped_os_errors(path):
        return json.loads(path.read_bytes())


def _damaged(path: Path, error: Exception) -> StoreError:
    reason = " ".join(str(error).split())[:200]
    return StoreError(
        f"{path}: is damaged ({type(error).__name__}: {reason}); delete it and run"
        " `embedcache sweep --resume` again"
    )
