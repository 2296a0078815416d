"""PredictionService: texts → stored features → probabilities of a run's labels."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from embedcache.errors import TrainingError
from embedcache.service.errors import ServiceProblem, fault
from embedcache.service.served_run import ServedRun, choose_run
from embedcache.service.worker import WorkerFaultError, WorkerProcess

if TYPE_CHECKING:
    from embedcache.service.features import Features, FeatureService
    from embedcache.service.settings import ServiceSettings
    from embedcache.store.store import FeatureStore

__all__ = ["PredictionService", "Predictor", "RunPrediction", "ServedRun"]

PlainPrediction = tuple[str, dict[str, float], tuple[str, ...]]
"""Label, the probability of each, and the labels that the text gets."""


class Predictor(Protocol):
    """What `ServiceSettings.predictor` makes of the store's path, in a worker's process."""

    def load(self, run: str) -> None:
        """Load a run's model; fine if it is loaded."""
        ...

    def predict(self, run: str, texts: Sequence[str]) -> list[PlainPrediction]:
        """Label texts whose features are stored."""
        ...

    def close(self) -> None:
        """Called at the end."""
        ...


@dataclass(frozen=True, slots=True)
class RunPrediction:
    """What a run says of a text.

    Attributes:
        label: The most probable label.
        probabilities: The probability of each label, in sorted order of the labels.
        labels: The labels that the text gets: the most probable one; of a run with several
            labels a text those with a probability of at least one half, perhaps none.
    """

    label: str
    probabilities: Mapping[str, float]
    labels: tuple[str, ...]


class PredictionService:
    """The predictions of a store's runs, for one event loop. An async context manager.

    All models are in one process, which is started at the first prediction; there they stay.

    Args:
        store: An open store; it stays the caller's.
        settings: Which runs predict, and how.
        features: Has the features of the texts.
    """

    def __init__(
        self, store: FeatureStore, settings: ServiceSettings, features: FeatureService
    ) -> None:
        self._settings = settings
        self._features = features
        self._num_texts = 0
        self._worker: WorkerProcess | None = None
        if settings.predictor is not None:
            arguments = (str(store.path),)
            self._worker = WorkerProcess(settings.predictor, arguments, name="prediction worker's")

    async def __aenter__(self) -> PredictionService:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._worker is not None:
            await self._worker.close()

    @property
    def runs(self) -> tuple[ServedRun, ...]:
        """The runs that predict, oldest first: those whose view is served."""
        if self._worker is None:
            return ()
        known, names = self._features.runs, self._settings.runs
        if names:
            chosen = {run.run for run in (choose_run(name, known) for name in names) if run}
            known = tuple(run for run in known if run.run in chosen)
        views = {view.fingerprint for view in self._features.views}
        return tuple(run for run in known if run.record.view in views)

    @property
    def worker_pid(self) -> int | None:
        """Of the process that predicts; None where none runs."""
        return None if self._worker is None else self._worker.pid

    def find_run(self, name: str) -> ServedRun:
        """The run of a name or the beginning of one; ``last`` is the newest.

        Raises:
            ServiceProblem: 404, if there is none, or several.
        """
        runs = self.runs
        found = choose_run(name, runs)
        if found is None:
            known = ", ".join(run.run for run in runs[-20:])
            raise ServiceProblem(
                404,
                "unknown_run",
                f"that is the name of no run here, or of several; there are: {known or 'none'}",
            )
        return found

    async def predict(
        self,
        run: ServedRun,
        texts: Sequence[str],
        *,
        may_compute: bool,
        deadline: float,
        on_features: Callable[[Features], object] = lambda _features: None,
    ) -> list[RunPrediction]:
        """Label texts; features that are missing are computed and kept.

        Args:
            run: Of `find_run`.
            texts: n texts.
            may_compute: Whether missing features may be computed.
            deadline: How long to wait, as `time.monotonic` has it.
            on_features: Called with the texts' features, once they are there.

        Returns:
            n predictions, in the order of the texts.

        Raises:
            CorpusError: if a text has a lone surrogate.
            ServiceProblem: as `FeatureService.features`; 429, if too many texts wait to be
                labelled; 503, if the run's files are damaged, or the worker dies.
        """
        view = self._features.find_view(run.record.view)
        features = await self._features.features(
            view, texts, may_compute=may_compute, deadline=deadline
        )
        on_features(features)
        if self._num_texts + len(texts) > self._settings.limits.max_queued_texts:
            raise ServiceProblem(
                429, "queue_full", f"{self._num_texts} texts wait to be labelled already; send the"
                " request again later", retry_after_s=1.0,
            )  # fmt: skip
        self._num_texts += len(texts)
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                found = await self._label(run.run, texts)
        except TimeoutError:
            raise ServiceProblem(
                504, "deadline", "the texts were not labelled in time; their features are stored:"
                " send the request again",
            ) from None  # fmt: skip
        finally:
            self._num_texts -= len(texts)
        return [RunPrediction(*prediction) for prediction in found]

    async def _label(self, run: str, texts: Sequence[str]) -> list[PlainPrediction]:
        if self._worker is None:
            raise ServiceProblem(404, "unknown_run", "this service has no predictions")
        try:
            found: list[PlainPrediction] = await self._worker.call("predict", run, list(texts))
        except TrainingError as error:
            raise fault(503, "run_unavailable", error) from error
        except WorkerFaultError as error:
            raise fault(500, "internal", error) from error
        return found
