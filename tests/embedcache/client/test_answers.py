"""What comes over the wire is compared with what was asked for: never wrong vectors."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from embedcache.client.answers import read_predictions, read_runs
from embedcache.client.store import RemoteStore
from embedcache.errors import ServiceError
from embedcache.wire import json_array
from tests.embedcache.client.conftest import TEXTS
from tests.embedcache.client.small_server import Fault, SmallServer, twisted
from tests.embedcache.store import programs

VIEW = programs.VIEW.fingerprint
Change = Callable[[Any], Any]


def put(place: Any, value: Any) -> Change:
    def change(array: Any) -> Any:
        array[place] = value
        return array

    return change


def lacking(name: str) -> Fault:
    return Fault(twist=lambda arrays: {key: arrays[key] for key in arrays if key != name})


def flip(body: bytes) -> bytes:
    """One bit of the first array's numbers, which a checksum shows."""
    place = body.index(b"\x93NUMPY") + 130
    return body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]


DAMAGE = {
    "no archive": Fault(twist_bytes=lambda _: b"<html></html>"),
    "nothing": Fault(twist_bytes=lambda _: b""),
    "cut": Fault(twist_bytes=lambda body: body[:-40]),
    "a bit": Fault(twist_bytes=flip),
}
LOOKUPS = {
    **DAMAGE,
    "fewer texts": twisted("num_tokens", lambda array: array[1:]),
    "another dtype": twisted("num_tokens", lambda array: array.astype(np.int32)),
    "below nothing": twisted("num_tokens", put(3, -2)),
    "no truncated": lacking("truncated"),
    "windowed of another shape": twisted("windowed", lambda array: array[:, None]),
}
GATHERS = {
    **DAMAGE,
    "other keys": twisted("keys", put((0, 0), 1)),
    "another order": twisted("keys", lambda array: array[::-1]),
    "fewer keys": twisted("keys", lambda array: array[1:]),
    "keys of another dtype": twisted("keys", lambda array: array.astype(np.int64)),
    "no keys": lacking("keys"),
    "another width": twisted("values", lambda array: array.reshape(-1, 2)),
    "flat values": twisted("values", lambda array: array.reshape(-1)),
    "another dtype": twisted("values", lambda array: array.astype(np.float32)),
    "fewer rows": twisted("values", lambda array: array[1:]),
    "more rows": twisted("values", lambda array: np.repeat(array, 2, axis=0)),
    "splits that fall": twisted("row_splits", put(1, 10**6)),
    "splits that begin late": twisted("row_splits", put(0, 1)),
    "splits of other texts": twisted("row_splits", put(slice(1, -1), 0)),
    "splits of 32 bits": twisted("row_splits", lambda array: array.astype(np.int32)),
    "no truncated": lacking("truncated"),
}
DATASETS = {
    **DAMAGE,
    "no record": lacking("record"),
    "a record that is no JSON": twisted("record", lambda _: np.zeros(3, np.uint8)),
    "a record without names": twisted("record", lambda _: json_array({"name": "numbered"})),
    "codes beyond the names": twisted("label_codes", put(0, 3)),
    "codes below the names": twisted("label_codes", put(0, -1)),
    "splits beyond the names": twisted("split_codes", put(0, 3)),
    "fewer labels": twisted("label_codes", lambda array: array[1:]),
    "labels that fall": twisted("label_splits", put(4, 0)),
    "fewer documents": twisted("keys", lambda array: array[1:]),
    "keys of another width": twisted("keys", lambda array: array.reshape(-1, 8)),
}


def of_view(name: str, value: Any) -> Fault:
    def change(record: Any) -> Any:
        record["views"][0][name] = value
        return record

    return Fault(twist_json=change)


VIEWS = {
    "no JSON": Fault(twist_bytes=lambda _: b"<html></html>"),
    "deep JSON": Fault(twist_bytes=lambda _: b"[" * 100_000),
    "no object": Fault(twist_json=lambda _: []),
    "no list": Fault(twist_json=lambda _: {"views": {}}),
    "no records": Fault(twist_json=lambda _: {"views": [1]}),
    "another fingerprint": of_view("fingerprint", "0" * 32),
    "no view": of_view("view", None),
    "a field that is not known": of_view("view", {"schema": 1, "colour": "red"}),
    "a number that is none": of_view("texts", "many"),
    "a truth value that is none": of_view("default", 1),
}


def refused(server: SmallServer, fault: Fault, ask: Callable[[], Any], *, after: int = 0) -> None:
    """The answer is refused in one line, and the next, right one is taken."""
    server.faults = [*[None] * after, fault]
    with pytest.raises(ServiceError) as caught:
        ask()
    line = str(caught.value)
    assert line.startswith(f"{server.url}: the answer to ")
    assert "is not what was asked for (" in line
    assert "nothing of it is used" in line
    assert line.isprintable()
    ask()


@pytest.mark.parametrize("fault", LOOKUPS.values(), ids=LOOKUPS)
def test_a_wrong_look_up_is_refused(server: SmallServer, remote: RemoteStore, fault: Fault) -> None:
    remote.reader(VIEW)
    refused(server, fault, lambda: remote.contains(VIEW, TEXTS[:50]))


@pytest.mark.parametrize("fault", GATHERS.values(), ids=GATHERS)
def test_wrong_matrices_are_refused(server: SmallServer, remote: RemoteStore, fault: Fault) -> None:
    remote.reader(VIEW)
    refused(server, fault, lambda: remote.get(VIEW, TEXTS[:50]), after=1)
    found = remote.get(VIEW, TEXTS[:50])
    np.testing.assert_array_equal(found.values, server.store.get(VIEW, TEXTS[:50]).values)


# How long a text is that was never seen, only the service knows.
@pytest.mark.parametrize("name", [name for name in GATHERS if name != "splits of other texts"])
def test_wrong_matrices_of_new_texts_are_refused(
    server: SmallServer, remote: RemoteStore, name: str
) -> None:
    remote.reader(VIEW)
    new = [f"new {number}" for number in range(20)]
    refused(server, GATHERS[name], lambda: remote.embed(VIEW, new), after=1)


@pytest.mark.parametrize("fault", DATASETS.values(), ids=DATASETS)
def test_a_wrong_dataset_is_refused(server: SmallServer, remote: RemoteStore, fault: Fault) -> None:
    refused(server, fault, lambda: remote.load_dataset("numbered"), after=1)


def test_another_dataset_than_was_asked_for_is_refused(
    server: SmallServer, remote: RemoteStore
) -> None:
    def other(_: Any) -> Any:
        names = {"label_names": ["a", "b", "c"], "split_names": ["train", "dev", "test"]}
        return json_array({"name": "other", "version": "0" * 32, "newest_view": None, **names})

    refused(server, twisted("record", other), lambda: remote.load_dataset("numbered"), after=1)


@pytest.mark.parametrize("fault", VIEWS.values(), ids=VIEWS)
def test_a_wrong_list_of_views_is_refused(
    server: SmallServer, remote: RemoteStore, fault: Fault
) -> None:
    refused(server, fault, remote.views)


def test_lengths_that_have_changed_since_are_refused(
    server: SmallServer, remote: RemoteStore
) -> None:
    """A matrix in memory that is longer than its place would run over the next text's."""
    remote.get(VIEW, TEXTS[:50])
    server.faults = [twisted("num_tokens", lambda array: array + (array > 0))]
    with pytest.raises(ServiceError, match="have other lengths than when they were fetched"):
        remote.get(VIEW, TEXTS[:50])


def runs(**fields: Any) -> bytes:
    record = {
        "run": "r", "dataset": "d", "version": "v", "view": "w", "labels": ["a", "b"],
        "dev": {"accuracy": 0.5}, "test": None, **fields,
    }  # fmt: skip
    return json.dumps({"runs": [record]}).encode()


def test_runs_are_read() -> None:
    (run,) = read_runs(runs())
    assert (run.run, run.labels, run.dev, run.test) == ("r", ("a", "b"), {"accuracy": 0.5}, None)


@pytest.mark.parametrize("fields", [{"run": 1}, {"labels": "ab"}, {"labels": [1]}, {"dev": []}])
def test_wrong_runs_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        read_runs(runs(**fields))


def test_predictions_are_read() -> None:
    found = read_predictions(b'{"predictions": [[0.25, 0.75], [1, 0]]}', 2, 2)
    assert found.tolist() == [[0.25, 0.75], [1, 0]]


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"predictions": [[0.25, 0.75]]}',
        b'{"predictions": [[0.25], [0.75]]}',
        b'{"predictions": [[0.25, 0.75], [1]]}',
        b'{"predictions": [[0.25, 0.75], [1, -1]]}',
        b'{"predictions": [[0.25, 0.75], [1, NaN]]}',
        b'{"predictions": [[0.25, 0.75], [{}, 1]]}',
    ],
)
def test_wrong_predictions_are_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="predictions"):
        read_predictions(body, 2, 2)
