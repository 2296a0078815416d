"""The interfaces that B12 asks: their requests, and whether an answer is what the store holds."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from http.client import HTTPConnection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import WrongAnswerError
from benchmarks.service_load import PreparedRequest, http_request
from embedcache import FeatureStore, RaggedArray
from embedcache.keys import keys_of_texts

NPZ = "application/x-npz"
ARROW = "application/vnd.apache.arrow.stream"
JSON = "application/json"
OCTETS = "application/octet-stream"

_FEW_REQUESTS = 16
"""Prepared requests that are enough of several texts each."""

Decode = Callable[[bytes], tuple[NDArray[Any], NDArray[Any] | None]]
"""An answer's body → its rows, and its row splits; None where there is one row a text."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked for.

    Attributes:
        fingerprint: Of the view.
        texts: Texts that are stored under it.
    """

    fingerprint: str
    texts: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """One way to ask.

    Attributes:
        name: In the table.
        path: Where, of a question.
        body: What is sent.
        decode: What is answered.
        accept: The ``Accept`` header.
        content_type: Of what is sent.
        is_binary: Whether the answer holds arrays as they are in memory.
    """

    name: str
    path: Callable[[Question], str]
    body: Callable[[Question], bytes]
    decode: Decode
    accept: str = JSON
    content_type: str = JSON
    is_binary: bool = False

    def request(self, question: Question) -> PreparedRequest:
        """The bytes to send."""
        return self.request_to(self.path(question), question)

    def request_to(self, path: str, question: Question) -> PreparedRequest:
        """The same body and headers for another route."""
        return http_request(
            "POST",
            path,
            self.body(question),
            accept=self.accept,
            content_type=self.content_type,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """An interface asked for so many texts of a view: several requests of one kind.

    Attributes:
        interface: Which.
        view: What the view is called in the table; empty: the default one.
        questions: What each of the requests asks for.
        answer_bytes: Of the body of each answer, filled by `check_answers`.
    """

    interface: Interface
    view: str
    questions: Sequence[Question]
    answer_bytes: list[int] = field(default_factory=list)

    @property
    def num_texts(self) -> int:
        """Of each request."""
        return len(self.questions[0].texts)

    @property
    def name(self) -> str:
        """In the table."""
        plural = "s" if self.num_texts > 1 else ""
        view = f", {self.view}" if self.view else ""
        return f"{self.interface.name}, {self.num_texts} text{plural}{view}"


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _features_body(question: Question) -> bytes:
    return _json({"texts": list(question.texts), "view": question.fingerprint})


def _embeddings_body(question: Question, encoding: str) -> bytes:
    body = {"model": question.fingerprint, "input": list(question.texts)}
    return _json({**body, "encoding_format": encoding})


def _read_npz(body: bytes) -> tuple[NDArray[Any], NDArray[Any]]:
    with np.load(io.BytesIO(body)) as arrays:
        return arrays["values"], arrays["row_splits"]


def _read_arrow(body: bytes) -> tuple[NDArray[Any], NDArray[Any]]:
    import pyarrow.ipc

    lists = pyarrow.ipc.open_stream(body).read_all()["values"].combine_chunks()
    dim = lists.type.value_type.list_size
    rows = lists.flatten().flatten().to_numpy(zero_copy_only=False)
    splits = lists.offsets.to_numpy().astype(np.int64)
    return rows.reshape(-1, dim), splits - splits[0]


def _read_json(body: bytes) -> tuple[NDArray[Any], NDArray[Any]]:
    matrices = [feature["values"] for feature in json.loads(body)["features"]]
    lengths = [len(matrix) for matrix in matrices]
    rows = [row for matrix in matrices for row in matrix]
    return np.array(rows, np.float32), np.concatenate([[0], np.cumsum(lengths)])


def _read_embeddings(body: bytes) -> tuple[NDArray[Any], None]:
    found = [each["embedding"] for each in json.loads(body)["data"]]
    rows = [
        np.frombuffer(base64.b64decode(each), "<f4") if isinstance(each, str) else each
        for each in found
    ]
    return np.array(rows, np.float32), None


def _read_embed(body: bytes) -> tuple[NDArray[Any], None]:
    return np.array(json.loads(body), np.float32), None


FEATURES_NPZ = Interface(
    name="/v1/features, npz",
    path=lambda _question: "/v1/features",
    body=_features_body,
    decode=_read_npz,
    accept=NPZ,
    is_binary=True,
)
FEATURES_JSON = Interface(
    name="/v1/features, JSON",
    path=lambda _question: "/v1/features",
    body=_features_body,
    decode=_read_json,
)
INTERFACES = (
    FEATURES_NPZ,
    Interface(
        name="/v1/features, Arrow",
        path=lambda _question: "/v1/features",
        body=_features_body,
        decode=_read_arrow,
        accept=ARROW,
        is_binary=True,
    ),
    Interface(
        name="gather by key, npz",
        path=lambda question: f"/v1/features/{question.fingerprint}/gather",
        body=lambda question: keys_of_texts(question.texts).tobytes(),
        decode=_read_npz,
        accept=NPZ,
        content_type=OCTETS,
        is_binary=True,
    ),
    FEATURES_JSON,
    Interface(
        name="/v1/embeddings, float",
        path=lambda _question: "/v1/embeddings",
        body=lambda question: _embeddings_body(question, "float"),
        decode=_read_embeddings,
    ),
    Interface(
        name="/v1/embeddings, base64",
        path=lambda _question: "/v1/embeddings",
        body=lambda question: _embeddings_body(question, "base64"),
        decode=_read_embeddings,
    ),
    Interface(
        name="/embed",
        path=lambda _question: "/embed",
        body=lambda question: _json({"inputs": list(question.texts)}),
        decode=_read_embed,
    ),
)
PEER = Interface(
    name="FastAPI, dict, response_model",
    path=lambda _question: "/features",
    body=lambda question: _json({"texts": list(question.texts)}),
    decode=_read_json,
)
"""What `benchmarks.service_peers` answers: of the float32 of what is stored."""


def draw_questions(
    fingerprint: str, texts: Sequence[str], num_texts: int, *, distinct: int
) -> list[Question]:
    """Requests for so many different texts each, drawn at random, the same each time.

    Args:
        fingerprint: The view.
        texts: What is stored under it.
        num_texts: Of a request.
        distinct: Requests of one text; of several there are fewer.
    """
    rng = np.random.default_rng(num_texts)
    num_requests = max(min(_FEW_REQUESTS, distinct), distinct // num_texts)
    return [
        Question(fingerprint, [texts[row] for row in rng.permutation(len(texts))[:num_texts]])
        for _ in range(num_requests)
    ]


def check_answers(cell: Cell, store: FeatureStore, port: int) -> None:
    """Ask once for each of a cell's questions, and compare the answers with the store's rows.

    Raises:
        WrongAnswerError: if one has other rows, or is not answered.
    """
    interface = cell.interface
    for question in cell.questions:
        headers = {"Accept": interface.accept, "Content-Type": interface.content_type}
        # Each on a connection of its own, as decoding may take longer than one is kept idle.
        with closing(HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
            path = interface.path(question)
            connection.request("POST", path, interface.body(question), headers)
            answer = connection.getresponse()
            body = answer.read()
        if answer.status != 200:
            raise WrongAnswerError(f"{cell.name}: {answer.status} {body[:300]!r}")
        stored = store.get(question.fingerprint, question.texts)
        compare_rows(cell.name, interface.decode(body), stored)
        cell.answer_bytes.append(len(body))


def compare_rows(
    name: str, found: tuple[NDArray[Any], NDArray[Any] | None], stored: RaggedArray
) -> None:
    """Compare an answer's rows, or its vectors, with what is stored.

    Raises:
        WrongAnswerError: if they differ.
    """
    rows, splits = found
    if splits is not None:
        if not np.array_equal(splits, stored.row_splits):
            raise WrongAnswerError(f"{name}: other numbers of tokens than the store has")
        if not np.array_equal(rows, stored.values):
            raise WrongAnswerError(f"{name}: other rows than the store has")
        return
    pooled = [matrix.astype(np.float64).mean(axis=0) for matrix in stored]
    expected = np.array([vector / np.linalg.norm(vector) for vector in pooled])
    # Whether an interface normalises is its own affair; its directions are the store's.
    directions = rows / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    if rows.shape != expected.shape or not np.allclose(directions, expected, atol=1e-5):
        raise WrongAnswerError(f"{name}: other vectors than the means of the store's rows")
