"""What a service's answers must be: arrays and records, compared with what was asked for.

Nothing that fails here is used: a wrong answer is a `ValueError` that says what is wrong, which
becomes a `ServiceError`; never wrong vectors.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import StoreVersionError
from embedcache.keys import KEY_BYTES, Keys
from embedcache.ragged import RaggedArray
from embedcache.store.database.records import ViewRecord
from embedcache.store.dataset import Dataset
from embedcache.view import FeatureView
from embedcache.wire import json_of_array, unpack_arrays


@dataclass(frozen=True, slots=True)
class RemoteView:
    """A view that a service serves.

    Attributes:
        record: Its fingerprint, its fields, and the handles that its module was named by.
        alias: What the service calls it besides; None: nothing.
        is_default: Whether requests that name no view mean it.
        num_texts: Texts that are stored under it.
        num_tokens: Their tokens.
        num_bytes: Of its shards.
    """

    record: ViewRecord
    alias: str | None
    is_default: bool
    num_texts: int
    num_tokens: int
    num_bytes: int

    @property
    def fingerprint(self) -> str:
        """The view's."""
        return self.record.fingerprint


@dataclass(frozen=True, slots=True)
class RemoteDataset:
    """A version of a dataset that a service has.

    Attributes:
        name: What it is called.
        version: 32 hexadecimal digits.
        num_texts: Its documents.
        num_unique: Distinct ones among them.
        created_at: In seconds since 1970.
        newest_view: Fingerprint of the view that it was last built under; None: of none.
    """

    name: str
    version: str
    num_texts: int
    num_unique: int
    created_at: float
    newest_view: str | None


@dataclass(frozen=True, slots=True)
class RemoteRun:
    """A run that a service predicts with.

    Attributes:
        run: What it is called.
        dataset: The dataset that it was trained on.
        version: The dataset's version.
        view: Fingerprint of the view whose features it takes.
        labels: In sorted order, as the probabilities of a prediction are.
        dev: Its metrics on the dev split, by name; None without one.
        test: On the test split.
    """

    run: str
    dataset: str
    version: str
    view: str
    labels: tuple[str, ...]
    dev: dict[str, Any] | None
    test: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class FoundTexts:
    """What a service says of n keys.

    Attributes:
        num_tokens: Shape (n,) int64; -1 where a key is not stored.
        truncated: Whether the text was cut, (n,) bool.
        windowed: Whether its rows were stitched from overlapping windows, (n,) bool.
    """

    num_tokens: NDArray[np.int64]
    truncated: NDArray[np.bool_]
    windowed: NDArray[np.bool_]


def read_lookup(body: bytes, num_keys: int) -> FoundTexts:
    """The answer to a look-up of n keys.

    Raises:
        ValueError: if it is none.
    """
    arrays = unpack_arrays(body)
    num_tokens = _array(arrays, "num_tokens", np.dtype("<i8"), (num_keys,))
    if num_keys and int(num_tokens.min()) < -1:
        raise ValueError("num_tokens: a text of fewer than no tokens")
    truncated, windowed = (
        _array(arrays, name, np.dtype(np.bool_), (num_keys,)) for name in ("truncated", "windowed")
    )
    return FoundTexts(num_tokens, truncated, windowed)


def read_features(
    body: bytes, keys: Keys, *, dim: int, dtype: np.dtype[Any], num_tokens: Any = None
) -> RaggedArray:
    """The matrices that were asked for.

    Args:
        body: The answer.
        keys: What was asked for, (n, 16).
        dim: The view's width.
        dtype: Its value dtype.
        num_tokens: Of each text, (n,), as far as it is known.

    Raises:
        ValueError: if it is anything else than n matrices of these texts under this view.
    """
    arrays = unpack_arrays(body)
    if not np.array_equal(_array(arrays, "keys", np.dtype(np.uint8), keys.shape), keys):
        raise ValueError("keys: of other texts, or in another order")
    splits = _array(arrays, "row_splits", np.dtype("<i8"), (len(keys) + 1,))
    values = _array(arrays, "values", dtype, (None, dim))
    _array(arrays, "truncated", np.dtype(np.bool_), (len(keys),))
    matrices = RaggedArray(values, splits)
    if num_tokens is not None and not np.array_equal(matrices.lengths, num_tokens):
        raise ValueError("row_splits: texts of other lengths than the look-up said")
    return matrices


def read_dataset(body: bytes) -> Dataset:
    """The answer to ``GET /v1/datasets/NAME``.

    Raises:
        ValueError: if it is none.
    """
    arrays = unpack_arrays(body)
    record = json_of_array(_array(arrays, "record", np.dtype(np.uint8), (None,)))
    label_names, split_names = _names(record, "label_names"), _names(record, "split_names")
    keys = _array(arrays, "keys", np.dtype(np.uint8), (None, KEY_BYTES))
    codes = _array(arrays, "label_codes", np.dtype("<i4"), (None,))
    splits = _array(arrays, "label_splits", np.dtype("<i8"), (len(keys) + 1,))
    split_codes = _array(arrays, "split_codes", np.dtype(np.uint8), (len(keys),))
    if splits[0] != 0 or splits[-1] != len(codes) or np.any(splits[1:] < splits[:-1]):
        raise ValueError("label_splits: not ascending from 0 to the number of labels")
    if len(codes) and not 0 <= int(codes.min()) <= int(codes.max()) < len(label_names):
        raise ValueError("label_codes: no places in label_names")
    if len(split_codes) and int(split_codes.max()) >= len(split_names):
        raise ValueError("split_codes: no places in split_names")
    name, version = _field(record, "name", str), _field(record, "version", str)
    return Dataset(name, version, keys, codes, splits, label_names, split_codes, split_names)


def read_views(body: bytes) -> tuple[RemoteView, ...]:
    """The answer to ``GET /v1/views``.

    Raises:
        ValueError: if it is none, or a fingerprint is not that of its view.
    """
    return tuple(map(_view, _records(body, "views")))


def read_datasets(body: bytes) -> tuple[RemoteDataset, ...]:
    """The answer to ``GET /v1/datasets``.

    Raises:
        ValueError: if it is none.
    """
    return tuple(
        RemoteDataset(
            name=_field(record, "name", str),
            version=_field(record, "version", str),
            num_texts=_field(record, "texts", int),
            num_unique=_field(record, "unique", int),
            created_at=float(_field(record, "created_at", (int, float))),
            newest_view=_optional(record, "newest_view", str),
        )
        for record in _records(body, "datasets")
    )


def read_runs(body: bytes) -> tuple[RemoteRun, ...]:
    """The answer to ``GET /v1/runs``.

    Raises:
        ValueError: if it is none.
    """
    return tuple(
        RemoteRun(
            run=_field(record, "run", str),
            dataset=_field(record, "dataset", str),
            version=_field(record, "version", str),
            view=_field(record, "view", str),
            labels=_names(record, "labels"),
            dev=_optional(record, "dev", dict),
            test=_optional(record, "test", dict),
        )
        for record in _records(body, "runs")
    )


def read_predictions(body: bytes, num_texts: int, num_labels: int) -> NDArray[np.float64]:
    """The probabilities of n texts, (n, C) float64.

    Raises:
        ValueError: if they are none.
    """
    rows = _json_object(body).get("predictions")
    try:
        probabilities = np.array(rows, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"predictions: no numbers: {error}") from error
    if probabilities.shape != (num_texts, num_labels):
        raise ValueError(f"predictions: {probabilities.shape} instead of {(num_texts, num_labels)}")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError("predictions: a probability is not between 0 and 1")
    return probabilities


def _view(record: Any) -> RemoteView:
    fingerprint = _field(record, "fingerprint", str)
    try:
        view = FeatureView.from_json(json.dumps(_field(record, "view", dict)))
    except StoreVersionError as error:
        raise ValueError(f"view {fingerprint[:12]}: {error}") from error
    if view.fingerprint != fingerprint:
        raise ValueError(f"view {fingerprint[:12]}: its fields are those of another view")
    return RemoteView(
        record=ViewRecord(
            fingerprint,
            view,
            _optional(record, "module", str) or "",
            _optional(record, "preprocess", str) or "",
        ),
        alias=_optional(record, "alias", str),
        is_default=_field(record, "default", bool),
        num_texts=_field(record, "texts", int),
        num_tokens=_field(record, "tokens", int),
        num_bytes=_field(record, "bytes", int),
    )


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        record = json.loads(body)
    except RecursionError:
        record = None
    if not isinstance(record, dict):
        raise ValueError("no JSON object")  # noqa: TRY004 - as all that is wrong with an answer
    return record


def _records(body: bytes, name: str) -> Sequence[Any]:
    records: Sequence[Any] = _field(_json_object(body), name, list)
    return records


def _field(record: Any, name: str, kind: type | tuple[type, ...]) -> Any:
    value = record.get(name) if isinstance(record, dict) else None
    # Of Python's numbers a truth value is one too.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{name}: {value!r:.80} instead of {kind}")
    return value


def _optional(record: Any, name: str, kind: type) -> Any:
    is_there = isinstance(record, dict) and record.get(name) is not None
    return _field(record, name, kind) if is_there else None


def _names(record: Any, name: str) -> tuple[str, ...]:
    names = _field(record, name, list)
    if not all(isinstance(found, str) for found in names):
        raise ValueError(f"{name}: not only names")
    return tuple(names)


def _array(
    arrays: dict[str, NDArray[Any]], name: str, dtype: np.dtype[Any], shape: tuple[int | None, ...]
) -> NDArray[Any]:
    """An array of this dtype and shape, None for any size."""
    array = arrays.get(name)
    if array is None:
        raise ValueError(f"{name}: is missing")
    fits = len(array.shape) == len(shape) and all(
        wanted in (None, size) for size, wanted in zip(array.shape, shape, strict=True)
    )
    if array.dtype != dtype or not fits:
        raise ValueError(f"{name}: {array.dtype} {array.shape} instead of {dtype} {shape}")
    return array
