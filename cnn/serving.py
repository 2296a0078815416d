"""Predictor: what a service's prediction worker runs: models that stay loaded.

It labels texts whose features are stored, so that no module is ever loaded here; with a
backend that is not TensorFlow, TensorFlow is not either.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cnn.run import Run, load_run
from embedcache.store.store import FeatureStore, open_store

PlainPrediction = tuple[str, dict[str, float], tuple[str, ...]]
"""Label, the probability of each, and the labels that the text gets: to be sent to a process
that does not import this package."""


class Predictor:
    """Labels texts by any run of one store. One thread.

    Args:
        store: An open store, which it closes.
    """

    def __init__(self, store: FeatureStore) -> None:
        self._store = store
        self._runs: dict[str, Run] = {}

    def load(self, run: str) -> None:
        """Load a run's model; fine if it is loaded.

        Args:
            run: Its name.

        Raises:
            UnknownNameError: if there is no such run.
            TrainingError: if its files are missing or damaged.
        """
        self._run(run).load_model()

    def predict(self, run: str, texts: Sequence[str]) -> list[PlainPrediction]:
        """Label texts.

        Args:
            run: The run's name.
            texts: n texts.

        Returns:
            n predictions, in the order of the texts.

        Raises:
            KeyNotFoundError: if the features of one are not stored under the run's view.
            UnknownNameError: if there is no such run.
            TrainingError: if its files are missing or damaged.
        """
        predictions = self._run(run).predict_stored(texts)
        return [(each.label, dict(each.probabilities), each.labels) for each in predictions]

    def close(self) -> None:
        """Close the store."""
        self._store.close()

    def _run(self, name: str) -> Run:
        run = self._runs.get(name)
        if run is None:
            run = self._runs[name] = load_run(self._store, name)
        return run


def open_predictor(store_path: str) -> Predictor:
    """The predictor of a store.

    Raises:
        StoreError: if there is no store.
    """
    return Predictor(open_store(Path(store_path), create=False))
