"""RemoteStore: the features, datasets and runs of a service, as if they were here."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from embedcache.client.answers import (
    RemoteDataset,
    RemoteRun,
    RemoteView,
    read_dataset,
    read_datasets,
    read_predictions,
    read_runs,
    read_views,
)
from embedcache.client.cache import FeatureCache
from embedcache.client.connection import NPZ, Connection, Request
from embedcache.client.portions import Portions
from embedcache.client.reader import RemoteReader
from embedcache.errors import KeyNotFoundError, UnknownNameError
from embedcache.keys import keys_of_utf8, utf8_of_text
from embedcache.ragged import RaggedArray
from embedcache.store.database.catalog_tables import unknown_name
from embedcache.store.database.records import ViewRecord
from embedcache.store.dataset import Dataset
from embedcache.view import FeatureView

REQUEST_TEXTS = 32
"""Texts of a request at most: what the service takes unless it was told another limit."""
REQUEST_BYTES = 1 << 20
"""Of their JSON; the service takes 2 MiB."""
_MAX_DATASET_BYTES = 4 << 30
"""What an ``.npz`` can hold: a hundred million documents."""

Read = TypeVar("Read")


@dataclass(frozen=True, slots=True)
class RemotePrediction:
    """What a run of a service says of a text.

    Attributes:
        label: The most probable label.
        probability: Its probability.
        probabilities: The probability of every label, in the order of the run's labels.
    """

    label: str
    probability: float
    probabilities: Mapping[str, float]


class RemoteStore:
    """A service's features, datasets and runs. A context manager; any threads.

    `connect` makes one, and nothing is asked until something is needed. Pickling or copying it
    keeps the address and the API key, and drops connections and what was fetched; a forked
    child must connect anew, or copy it.

    Args:
        url: The service's address.
        api_key: One of the service's keys; None: none is sent.
        timeout_s: What one request may take, with all its repetitions.
        cache_bytes: Matrices that are kept in memory, the least recently used out first.

    Raises:
        ServiceError: if the address or the key cannot be one.
    """

    def __init__(
        self, url: str, *, api_key: str | None, timeout_s: float, cache_bytes: int
    ) -> None:
        self._connection = Connection(url, api_key=api_key, timeout_s=timeout_s)
        self._cache = FeatureCache(cache_bytes)
        self._arguments = (url, api_key, timeout_s, cache_bytes)
        self._readers: dict[str, RemoteReader] = {}
        # By what was asked for: a fingerprint never means another view.
        self._records: dict[str, ViewRecord] = {}
        self._embeds = self._portions()
        self._predicts = self._portions()

    def __enter__(self) -> RemoteStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reconnect, self._arguments

    def __repr__(self) -> str:
        return f"RemoteStore({self.url!r})"

    @property
    def url(self) -> str:
        """The service's address."""
        return self._connection.url

    def close(self) -> None:
        """Close connections and drop what was fetched; arrays that were handed out stay good."""
        self._connection.close()
        self._cache.clear()

    def views(self) -> tuple[RemoteView, ...]:
        """The views that the service serves.

        Raises:
            ServiceError: if it cannot be asked.
        """
        return self._read(Request("GET", "/v1/views"), read_views)

    def datasets(self) -> tuple[RemoteDataset, ...]:
        """The datasets that the service has, oldest first.

        Raises:
            ServiceError: if it cannot be asked.
        """
        return self._read(Request("GET", "/v1/datasets"), read_datasets)

    def runs(self) -> tuple[RemoteRun, ...]:
        """The runs that the service predicts with, oldest first.

        Raises:
            ServiceError: if it cannot be asked.
        """
        return self._read(Request("GET", "/v1/runs"), read_runs)

    def reader(self, view: str | FeatureView | ViewRecord) -> RemoteReader:
        """The reader of a view.

        Args:
            view: A view, its fingerprint or the beginning of it, or what the service calls it.

        Raises:
            UnknownNameError: if the service has no such view.
            ServiceError: if it cannot be asked.
        """
        if isinstance(view, str):
            view = self._find_view(view)
        known = view.view if isinstance(view, ViewRecord) else view
        made = RemoteReader(self._connection, known, self._cache)
        return self._readers.setdefault(known.fingerprint, made)

    def contains(self, view: str | FeatureView, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Which texts have features under a view, (n,) bool; only their keys are sent.

        Raises:
            UnknownNameError: if the service has no such view.
            ServiceError: if it cannot be asked.
        """
        return self.reader(view).contains(keys_of_utf8(map(utf8_of_text, texts)))

    def get(self, view: str | FeatureView, texts: Sequence[str]) -> RaggedArray:
        """The features of texts under a view; only their keys are sent.

        Args:
            view: A view, its fingerprint or the beginning of it, or what the service calls it.
            texts: n texts, in any order, with repetitions or not.

        Returns:
            n matrices as `FeatureStore.get` gives them. The arrays are the caller's.

        Raises:
            KeyNotFoundError: if a text has no features; the message names the first one.
            UnknownNameError: if the service has no such view.
            ServiceError: if it cannot be asked, or answers something else.
        """
        reader = self.reader(view)
        refs = reader.locate(keys_of_utf8(map(utf8_of_text, texts)))
        missing = np.flatnonzero(refs.shards < 0)
        if len(missing):
            raise KeyNotFoundError(
                f"{len(missing)} of {len(texts)} texts have no features under view"
                f" {reader.view.fingerprint[:12]} (the first: text {missing[0] + 1});"
                f" `embed` of the store at {self.url} computes them"
            )
        return reader.gather(refs)

    def embed(self, view: str | FeatureView, texts: Sequence[str]) -> RaggedArray:
        """The features of texts; the service computes and keeps those that are missing.

        Only the texts that are missing are sent.

        Args:
            view: A view, its fingerprint or the beginning of it, or what the service calls it.
            texts: n texts.

        Returns:
            n matrices, in the order of the texts. The arrays are the caller's.

        Raises:
            CorpusError: if a text has a lone surrogate.
            UnknownNameError: if the service has no such view.
            ServiceError: if it cannot be asked, or refuses to compute.
        """
        reader = self.reader(view)
        encoded = [utf8_of_text(text) for text in texts]
        keys = keys_of_utf8(encoded)
        refs, names = reader.locate(keys), reader.names_of(keys)
        places = {names[at]: at for at in np.flatnonzero(refs.shards < 0).tolist()}
        chosen = list(places.values())
        computed: dict[bytes, bytes] = {}

        def request_of(piece: slice) -> Request:
            record = {"texts": [texts[at] for at in chosen[piece]], "view": reader.view.fingerprint}
            return Request.post_json("/v1/features", record, accept=NPZ, allowed=(413,))

        sizes = [_json_bytes(texts[at]) for at in chosen]
        for piece, request, answer in self._embeds.ask(sizes, request_of):
            computed |= reader.read_matrices(request, answer, keys[chosen[piece]])
        reader.keep(computed)
        lengths = [
            len(computed[name]) // reader.row_bytes if name in computed else length
            for name, length in zip(names, refs.lengths.tolist(), strict=True)
        ]
        return reader.gather(replace(refs, lengths=np.array(lengths, np.int64)), known=computed)

    def predict(self, run: str, texts: Sequence[str]) -> list[RemotePrediction]:
        """Label texts with a run of the service. The texts are sent.

        Args:
            run: Its name or the beginning of it, or ``last`` for the newest.
            texts: Any number of texts.

        Returns:
            One prediction a text, in order.

        Raises:
            CorpusError: if a text has a lone surrogate.
            UnknownNameError: if the service has no such run.
            ServiceError: if it cannot be asked, or refuses.
        """
        if isinstance(texts, str):
            raise TypeError("texts must be a sequence of strings, not one string: put it in a list")
        found = self._find_run(run)
        path = f"/v1/models/{quote(found.run, safe='')}:predict"

        def request_of(piece: slice) -> Request:
            return Request.post_json(path, {"instances": list(texts[piece])}, allowed=(413,))

        predictions: list[RemotePrediction] = []
        sizes = [_json_bytes(text) for text in texts]
        for piece, request, answer in self._predicts.ask(sizes, request_of):
            try:
                rows = read_predictions(answer.body, piece.stop - piece.start, len(found.labels))
            except ValueError as error:
                raise self._connection.wrong_answer(request, str(error)) from None
            predictions += [_prediction(row, found.labels) for row in rows]
        return predictions

    def load_dataset(self, name: str | None = None) -> Dataset:
        """A dataset: ``NAME`` (its newest version), ``NAME@VERSION``, None the newest.

        Its keys, labels and splits come into memory, some 30 bytes a text.

        Raises:
            UnknownNameError: if there is no such dataset.
            ServiceError: if the service cannot be asked, or answers something else.
        """
        found = self._find_dataset(name)
        path = f"/v1/datasets/{quote(f'{found.name}@{found.version}', safe='@')}"
        request = Request("GET", path, accept=NPZ, max_answer_bytes=_MAX_DATASET_BYTES)

        def read(body: bytes) -> Dataset:
            dataset = read_dataset(body)
            if (dataset.name, dataset.version) != (found.name, found.version):
                raise ValueError("record: of another dataset")
            return dataset

        return self._read(request, read)

    def view_of_dataset(self, dataset: Dataset, view: str | None = None) -> ViewRecord:
        """The view named, or the one that the dataset was last built under.

        Raises:
            UnknownNameError: if there is none.
            ServiceError: if the service cannot be asked.
        """
        if view is None:
            versions = [found for found in self.datasets() if found.version == dataset.version]
            view = next((found.newest_view for found in versions if found.newest_view), "")
        return self._find_view(view)

    def record_use(self, view: str, version: str) -> None:
        """Nothing: what is used of its store is the service's to record."""

    def _portions(self) -> Portions:
        return Portions(self._connection, max_items=REQUEST_TEXTS, max_bytes=REQUEST_BYTES)

    def _read(self, request: Request, read: Callable[[bytes], Read]) -> Read:
        answer = self._connection.ask(request)
        try:
            return read(answer.body)
        except ValueError as error:
            raise self._connection.wrong_answer(request, str(error)) from None

    def _find_view(self, name: str) -> ViewRecord:
        found = self._records.get(name)
        if found is None:
            found = self._records[name] = _view_of_name(self.views(), name)
        return found

    def _find_dataset(self, name: str | None) -> RemoteDataset:
        known = self.datasets()
        found = [each for each in known if name in (None, each.name)]
        wanted, at, version = (name or "").rpartition("@")
        if not found and at:
            found = [e for e in known if e.name == wanted and e.version.startswith(version)]
        several = bool(version and at) and len({each.version for each in found}) > 1
        if found and not several:
            return found[-1]
        names = sorted({each.name for each in known})
        if wanted in names:
            names = [f"{wanted}@{each.version}" for each in known if each.name == wanted]
        raise UnknownNameError(unknown_name("dataset", name or "", names, several=several))

    def _find_run(self, name: str) -> RemoteRun:
        known = self.runs()
        if name == "last" and known:
            return known[-1]
        exact = [each for each in known if each.run == name]
        found = exact or [each for each in known if each.run.startswith(name)]
        if name and len(found) == 1:
            return found[0]
        names = [each.run for each in known]
        raise UnknownNameError(unknown_name("run", name, names, several=len(found) > 1))


def connect(
    url: str, *, api_key: str | None = None, timeout_s: float = 60.0, cache_bytes: int = 1 << 30
) -> RemoteStore:
    """Use the features of a service (`embedcache serve`) from another machine.

    Nothing is asked before something is needed.

    Args:
        url: Its address, such as ``http://127.0.0.1:8080``.
        api_key: One of the service's keys; None: none is sent.
        timeout_s: What one request may take: it is sent again meanwhile while the service
            cannot be reached, or says that it is busy.
        cache_bytes: Matrices that are kept in memory, the least recently used out first, so
            that a later epoch costs no request; 0: none.

    Raises:
        ServiceError: if the address or the key cannot be one.
    """
    return RemoteStore(url, api_key=api_key, timeout_s=timeout_s, cache_bytes=cache_bytes)


def _reconnect(url: str, api_key: str | None, timeout_s: float, cache_bytes: int) -> RemoteStore:
    return connect(url, api_key=api_key, timeout_s=timeout_s, cache_bytes=cache_bytes)


def _view_of_name(known: Sequence[RemoteView], name: str) -> ViewRecord:
    """The view of an alias, or whose fingerprint begins so."""
    named = [view for view in known if view.alias == name]
    found = named or [view for view in known if view.fingerprint.startswith(name)]
    if name and len(found) == 1:
        return found[0].record
    names = [view.alias or view.fingerprint for view in known]
    raise UnknownNameError(unknown_name("view", name, names, several=bool(name) and len(found) > 1))


def _prediction(row: NDArray[np.float64], labels: Sequence[str]) -> RemotePrediction:
    probabilities = dict(zip(labels, row.tolist(), strict=True))
    label = labels[int(row.argmax())]
    return RemotePrediction(label, probabilities[label], probabilities)


def _json_bytes(text: str) -> int:
    """Bytes of a text as JSON, and the comma behind it.

    Raises:
        CorpusError: if the text holds a lone surrogate.
    """
    return len(utf8_of_text(json.dumps(text, ensure_ascii=False))) + 1
