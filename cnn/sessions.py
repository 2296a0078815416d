"""A training's state, and how it goes into a checkpoint and comes back."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnn.checkpoints import CheckpointFile, Snapshot
from cnn.fitting import Best, EpochSums, FitState, rank_scores
from cnn.fresh import Variables, arrays_of, assign
from cnn.metrics import Scores
from cnn.progress import EpochReport
from embedcache.errors import TrainingError
from embedcache.stream.state import StreamState
from embedcache.stream.stream import FeatureStream


@dataclass(frozen=True, slots=True)
class Outcome:
    """One training that is done: without folds the only one.

    Attributes:
        history: Each epoch's report.
        best: The best epoch; without weights where another fold's was better.
        test_probabilities: What it said of the test texts, (n, C) float32; None: no test.
        test: Its scores there.
    """

    history: tuple[EpochReport, ...]
    best: Best
    test_probabilities: NDArray[np.float32] | None
    test: Scores | None


@dataclass(slots=True)
class Session:
    """What of a training is done, and where the rest is kept meanwhile.

    Attributes:
        about: What is trained on what; goes into every checkpoint as it is.
        given_labels: Arrays of labels that the caller gave; go there too.
        outcomes: The trainings that are done, in the order of the folds.
        fit: How far the one that goes on is, where it is taken up again; else None.
        model_variables: Of the model there.
        optimizer_variables: Of its optimizer.
        stream: The stream's state there.
        elapsed_s: Seconds that earlier sessions took, up to their last checkpoint.
        file: Where checkpoints go; None: nowhere.
        is_new: Whether it was not taken up from a checkpoint.
        started: When this session began, by `time.perf_counter`.
    """

    about: Mapping[str, Any]
    given_labels: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    fit: FitState | None = None
    model_variables: Variables = field(default_factory=list)
    optimizer_variables: Variables = field(default_factory=list)
    stream: StreamState | None = None
    elapsed_s: float = 0.0
    file: CheckpointFile | None = None
    is_new: bool = True
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """What all sessions took so far."""
        return self.elapsed_s + time.perf_counter() - self.started

    @property
    def best_fold(self) -> int:
        """The outcome with the best dev scores; of equal ones the first."""
        ranks = [rank_scores(outcome.best.report.dev) for outcome in self.outcomes]
        return ranks.index(max(ranks))

    def add_outcome(self, outcome: Outcome) -> None:
        """Take up a training that is done; only the best one's weights are kept."""
        self.outcomes.append(outcome)
        best = self.best_fold
        for number, each in enumerate(self.outcomes):
            if number != best and each.best.weights:
                stripped = Best(each.best.report, [], each.best.dev_probabilities)
                self.outcomes[number] = Outcome(
                    each.history, stripped, each.test_probabilities, each.test
                )
        self.fit, self.stream = None, None

    def keep(self, model: Any, train: FeatureStream, state: FitState, why: str) -> None:
        """Write a checkpoint, if one is due; see `cnn.fitting.Hooks.keep`."""
        if self.file is not None and self.file.is_due(why):
            self.fit = state
            self.model_variables = arrays_of(model.variables)
            self.optimizer_variables = arrays_of(model.optimizer.variables)
            self.stream = StreamState(
                train.seed, len(state.history), state.sums.steps, train.order_digest
            )
            self.file.write(self.to_snapshot())
            self.fit = None

    def keep_outcomes(self) -> None:
        """Write a checkpoint between two trainings, if one is due."""
        if self.file is not None and self.file.is_due("epoch"):
            self.file.write(self.to_snapshot())

    def restore(self, model: Any, train: FeatureStream) -> FitState:
        """Give a compiled model the variables that it had, and hand over the state.

        Raises:
            TrainingError: if the model or the order of the texts is another one.
        """
        if self.fit is None or self.stream is None:
            return FitState()
        if self.stream.order != train.order_digest:
            raise TrainingError(
                f"run {self.about['run']} cannot go on: the order of its training texts is another"
                " one than before, because the features have moved or their number has changed;"
                " train again without --resume"
            )
        try:
            assign(model.variables, self.model_variables)
            assign(model.optimizer.variables, self.optimizer_variables)
        except ValueError as error:
            raise TrainingError(
                f"run {self.about['run']} cannot go on: its network has other variables than"
                " before; train again without --resume"
            ) from error
        state, self.fit = self.fit, None
        return state

    def to_snapshot(self) -> Snapshot:
        """All of it, for a file."""
        arrays: dict[str, NDArray[Any]] = {**self.given_labels}
        outcomes = []
        for number, outcome in enumerate(self.outcomes):
            outcomes.append(_fit_record(outcome.history, outcome.best, f"outcome{number}", arrays))
            outcomes[-1]["test"] = None if outcome.test is None else outcome.test.to_record()
            if outcome.test_probabilities is not None:
                arrays[f"outcome{number}.test"] = outcome.test_probabilities
        fit = None
        if self.fit is not None:
            fit = _fit_record(self.fit.history, self.fit.best, "fit", arrays)
            fit["sums"] = asdict(self.fit.sums)
            _put_list(arrays, "model", self.model_variables)
            _put_list(arrays, "optimizer", self.optimizer_variables)
        state = {
            "outcomes": outcomes,
            "fit": fit,
            "stream": None if self.stream is None else self.stream.to_record(),
            "elapsed_s": self.seconds,
        }
        return Snapshot(self.about, state, arrays)

    @classmethod
    def from_snapshot(cls, snapshot: Snapshot) -> Session:
        """What `to_snapshot` gave; the clock goes on from there."""
        state, arrays = snapshot.state, snapshot.arrays
        fit, stream = state["fit"], state["stream"]
        return cls(
            about=snapshot.about,
            given_labels={key: arrays[key] for key in arrays if key.startswith("labels.")},
            outcomes=[
                _outcome_of(record, arrays, number)
                for number, record in enumerate(state["outcomes"])
            ],
            fit=None
            if fit is None
            else FitState(*_fit_of(fit, arrays, "fit"), EpochSums(**fit["sums"])),
            model_variables=_get_list(arrays, "model"),
            optimizer_variables=_get_list(arrays, "optimizer"),
            stream=None if stream is None else StreamState.from_record(stream),
            elapsed_s=state["elapsed_s"],
            is_new=False,
        )


def _fit_record(
    history: Sequence[EpochReport], best: Best | None, name: str, arrays: dict[str, NDArray[Any]]
) -> dict[str, Any]:
    """Reports as JSON values; what the best epoch gave goes among the arrays."""
    if best is not None:
        _put_list(arrays, f"{name}.weights", best.weights)
        arrays[f"{name}.dev"] = best.dev_probabilities
    return {
        "history": [report.to_record() for report in history],
        "best_epoch": None if best is None else best.report.epoch,
    }


def _fit_of(
    record: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], name: str
) -> tuple[list[EpochReport], Best | None]:
    history = [EpochReport.from_record(each) for each in record["history"]]
    if record["best_epoch"] is None:
        return history, None
    best = history[record["best_epoch"] - 1]
    return history, Best(best, _get_list(arrays, f"{name}.weights"), arrays[f"{name}.dev"])


def _outcome_of(
    record: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], number: int
) -> Outcome:
    history, best = _fit_of(record, arrays, f"outcome{number}")
    if best is None:
        raise ValueError("a finished training without a best epoch")
    test = None if record["test"] is None else Scores(**record["test"])
    return Outcome(tuple(history), best, arrays.get(f"outcome{number}.test"), test)


def _put_list(arrays: dict[str, NDArray[Any]], name: str, values: Sequence[NDArray[Any]]) -> None:
    arrays.update({f"{name}.{number:04}": value for number, value in enumerate(values)})


def _get_list(arrays: Mapping[str, NDArray[Any]], name: str) -> Variables:
    keys = (key for key in arrays if key.rpartition(".")[0] == name)
    return [arrays[key] for key in sorted(key for key in keys if key[-4:].isdigit())]
