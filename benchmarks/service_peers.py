"""What B12 compares the service with: a bare socket, and what one would write in thirty lines.

python -m benchmarks.service_peers loopback                answers so many bytes to so many bytes
python -m benchmarks.service_peers fastapi STORE VIEW   features from a dict in RAM, as JSON

Each prints its port when it listens, and ends when its standard input does.
"""

# No `from __future__ import annotations`: FastAPI reads the types of a route, and those here
# are made inside a function.

import os
import socket
import struct
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from fastapi import FastAPI

LOOPBACK_HEAD = struct.Struct("<II")
"""What a request to the bare socket begins with: its own length, and that of the answer."""

_BUFFER_BYTES = 1 << 20
_MAX_ANSWER_BYTES = 16 << 20


def loopback_request(request_bytes: int, answer_bytes: int) -> bytes:
    """A request of so many bytes for an answer of so many."""
    head = LOOPBACK_HEAD.pack(request_bytes, answer_bytes)
    return head + bytes(request_bytes - len(head))


def listen() -> socket.socket:
    """A socket that listens on the loopback; its port is printed."""
    listening = socket.create_server(("127.0.0.1", 0))
    print(listening.getsockname()[1], flush=True)
    return listening


def end_with_stdin() -> None:
    """End this process when the one that started it has closed its end, or is gone."""

    def wait() -> None:
        # Not by `sys.stdin`, whose lock would be held when the interpreter ends.
        while os.read(0, 1024):
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def serve_loopback() -> None:
    """Answer on each connection in a thread of its own: `recv` and `sendall`, nothing else."""
    answer = memoryview(bytes(range(256)) * (_MAX_ANSWER_BYTES >> 8))
    with listen() as listening:
        while True:
            connection, _ = listening.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=_answer, args=(connection, answer), daemon=True).start()


def _answer(connection: socket.socket, answer: memoryview) -> None:
    buffer = bytearray(_BUFFER_BYTES)
    with connection:
        while count := connection.recv_into(buffer):
            request_bytes, answer_bytes = LOOPBACK_HEAD.unpack_from(buffer)
            while count < request_bytes:
                count += connection.recv_into(buffer)
            connection.sendall(answer[:answer_bytes])


def make_peer_app(vectors: dict[str, NDArray[Any]]) -> "FastAPI":
    """What everybody would write: a dict of arrays, pydantic in and out.

    The route is `async`, so that it has no thread to wait for; FastAPI's documentation would
    as well have it without, which is slower.
    """
    from fastapi import FastAPI, HTTPException
    from pydantic import BaseModel

    class Texts(BaseModel):
        texts: list[str]

    class Feature(BaseModel):
        values: list[list[float]]

    class Features(BaseModel):
        features: list[Feature]

    app = FastAPI()

    @app.post("/features", response_model=Features)
    async def features(asked: Texts) -> Features:
        try:
            found = [vectors[text] for text in asked.texts]
        except KeyError:
            raise HTTPException(404, "a text is not stored") from None
        return Features(features=[Feature(values=rows.tolist()) for rows in found])

    return app


def serve_fastapi(store_path: Path, view: str) -> None:
    """Serve a view of the texts in the file ``texts`` beside the store, by uvicorn."""
    import uvicorn

    import embedcache

    texts = (store_path.parent / "texts").read_text(encoding="utf-8").split("\0")
    with embedcache.open_store(store_path, create=False) as store:
        features = store.get(view, texts)
        vectors = {
            text: np.array(rows, np.float32) for text, rows in zip(texts, features, strict=True)
        }
    config = uvicorn.Config(make_peer_app(vectors), log_level="warning")
    with listen() as listening:
        uvicorn.Server(config).run([listening])


if __name__ == "__main__":
    end_with_stdin()
    if sys.argv[1] == "loopback":
        serve_loopback()
    else:
        serve_fastapi(Path(sys.argv[2]), sys.argv[3])
