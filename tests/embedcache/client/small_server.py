"""A small HTTP server over a real store, whose answers can be made wrong.

It speaks what `embedcache.client` asks for, so that faults can be tried which the real service
does not have; what the two must agree on is tested against the real one.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import numpy as np

from embedcache.errors import UnknownNameError
from embedcache.keys import keys_of_texts
from embedcache.store.reader import ViewReader
from embedcache.store.store import FeatureStore
from embedcache.wire import json_array, pack_arrays, unpack_arrays

Arrays = dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """What happens to one request.

    Attributes:
        status: Answered instead of what was asked for; 0: none.
        headers: Sent with it.
        body: Sent with it.
        is_reset: Whether the connection is reset instead.
        twist: What is done to the arrays of the answer.
        twist_json: What is done to the JSON of the answer.
        twist_bytes: What is done to the answer's bytes.
    """

    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    is_reset: bool = False
    twist: Callable[[Arrays], Arrays] | None = None
    twist_json: Callable[[Any], Any] | None = None
    twist_bytes: Callable[[bytes], bytes] | None = None


@dataclass(frozen=True)
class Asked:
    """A request that came in."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def what(self) -> str:
        return self.path.rpartition("/")[2]


class SmallServer(ThreadingHTTPServer):
    """Serves a store at a free port of the loopback.

    Attributes:
        requests: What came in, in order.
        faults: The next requests' faults, one each; None: none.
        max_keys: Of a request; more are answered 413.
        max_bytes: Of an answer; more are answered 413.
        max_texts: Of a request; more are answered 413.
        embedded: Texts that were sent to be embedded.
    """

    daemon_threads = True

    def __init__(self, store: FeatureStore, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.store = store
        self.requests: list[Asked] = []
        self.faults: list[Fault | None] = []
        self.max_keys, self.max_bytes, self.max_texts = 4096, 64 << 20, 32
        self.embedded: list[str] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def count(self, what: str) -> int:
        """Requests whose path ends so."""
        return sum(asked.what == what for asked in self.requests)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are no errors."""


@contextmanager
def serving(store: FeatureStore, port: int = 0) -> Iterator[SmallServer]:
    with SmallServer(store, port) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: SmallServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers["Content-Length"])))

    def _answer(self, body: bytes) -> None:
        server = self.server
        headers = {name.lower(): value for name, value in self.headers.items()}
        with server.lock:
            server.requests.append(Asked(self.command, self.path, headers, body))
            fault = server.faults.pop(0) if server.faults else None
        fault = fault or Fault()
        if fault.is_reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return
        if fault.status:
            self._send(fault.status, fault.body, fault.headers)
            return
        try:
            status, answer = self._result(body)
        except UnknownNameError:
            status, answer = 404, problem("unknown_view", "there is no such view")
        if isinstance(answer, dict) and status == 200 and fault.twist is not None:
            answer = fault.twist(answer)
        packed = pack_arrays(answer) if isinstance(answer, dict) else answer
        if fault.twist_json is not None:
            packed = json.dumps(fault.twist_json(json.loads(packed))).encode()
        if fault.twist_bytes is not None:
            packed = fault.twist_bytes(packed)
        self._send(status, packed, fault.headers)

    def _send(self, status: int, body: bytes, headers: tuple[tuple[str, str], ...]) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _result(self, body: bytes) -> tuple[int, Arrays | bytes]:
        store, parts = self.server.store, unquote(self.path).strip("/").split("/")
        if parts == ["v1", "views"]:
            return 200, json.dumps({"views": list_views(store)}).encode()
        if parts == ["v1", "datasets"]:
            return 200, json.dumps({"datasets": list_datasets(store)}).encode()
        if parts[:2] == ["v1", "datasets"]:
            return 200, dataset_arrays(store, parts[2])
        if parts == ["v1", "features"]:
            return self._embed(json.loads(body))
        if parts[:2] == ["v1", "features"] and parts[3] in ("lookup", "gather"):
            return self._of_keys(store.reader(parts[2]), parts[3], body)
        return 404, b'{"detail":"Not Found"}'

    def _of_keys(self, reader: ViewReader, what: str, body: bytes) -> tuple[int, Arrays | bytes]:
        keys = np.frombuffer(body, np.uint8).reshape(-1, 16)
        if len(keys) > self.server.max_keys:
            return 413, problem("too_many_keys", f"{len(keys)} keys")
        refs = reader.locate(keys)
        if what == "lookup":
            num_tokens = np.where(refs.shards < 0, -1, refs.lengths)
            flags = {"truncated": refs.truncated, "windowed": refs.windowed}
            return 200, {"num_tokens": num_tokens, **flags}
        if (refs.shards < 0).any():
            return 404, problem("not_stored", "a key is not stored")
        matrices = reader.gather(refs)
        if matrices.values.nbytes > self.server.max_bytes:
            return 413, problem("answer_too_large", f"{matrices.values.nbytes} bytes")
        return 200, {
            "keys": keys,
            "row_splits": matrices.row_splits,
            "values": matrices.values,
            "truncated": refs.truncated,
        }

    def _embed(self, record: Any) -> tuple[int, Arrays | bytes]:
        from tests.embedcache.store import programs

        texts, store = record["texts"], self.server.store
        if len(texts) > self.server.max_texts:
            return 413, problem("too_many_texts", f"{len(texts)} texts")
        self.server.embedded += texts
        with self.server.lock:
            new = [text for text in texts if not store.contains(record["view"], [text])[0]]
            if new:
                programs.put(store, new)
        return self._of_keys(store.reader(record["view"]), "gather", keys_of_texts(texts).tobytes())


def problem(code: str, message: str) -> bytes:
    return json.dumps({"error": {"code": code, "message": message}}).encode()


def list_views(store: FeatureStore) -> list[Any]:
    newest = store.newest_view()
    return [
        {
            "fingerprint": record.fingerprint,
            "alias": None,
            "module": record.handle,
            "preprocess": record.preprocess,
            "default": record.fingerprint == newest,
            "texts": 0,
            "tokens": 0,
            "bytes": 0,
            "shards": 0,
            "view": json.loads(record.view.to_json()),
        }
        for record in store.catalog.views()
    ]


def list_datasets(store: FeatureStore) -> list[Any]:
    return [
        {
            "name": record.name,
            "version": record.version,
            "texts": record.num_documents,
            "unique": record.num_unique,
            "created_at": record.created_at,
            "newest_view": store.catalog.newest_view_of(record.version),
        }
        for record in store.catalog.datasets()
    ]


def dataset_arrays(store: FeatureStore, name: str) -> Arrays:
    found = asdict(store.load_dataset(name))
    names = ("name", "version", "label_names", "split_names")
    record = {name: found.pop(name) for name in names}
    newest = store.catalog.newest_view_of(record["version"])
    return {**found, "record": json_array({**record, "newest_view": newest})}


def twisted(name: str, change: Callable[[Any], Any]) -> Fault:
    """A fault that changes one array of the answer."""
    return Fault(twist=lambda arrays: {**arrays, name: change(arrays[name].copy())})


__all__ = ["Fault", "SmallServer", "problem", "serving", "twisted", "unpack_arrays"]
