"""A real server of modules whose faults can be switched, archives made by hand, and fetches."""

from __future__ import annotations

import gzip
import io
import socket
import struct
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from embedcache.errors import ModuleError
from embedcache.modules.cache import ModuleCache

HANG_S = 60.0


def pack(folder: Path, *, top: str = "") -> bytes:
    """A folder as a .tar.gz; ``top``: below a top folder of this name."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.add(folder, arcname=top or ".")
    return packed.getvalue()


def pack_members(*members: tarfile.TarInfo, content: bytes = b"x") -> bytes:
    """A .tar.gz of hand-made members."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(content * member.size))
    return packed.getvalue()


class ModuleServer(ThreadingHTTPServer):
    """Serves one archive under any path, as TF Hub does; its faults can be switched.

    ``fault``: "none"; "404", "500"; "html" (a page with status 200); "cut" (ends early, and the
    Content-Length says so); "short" (ends early, with a Content-Length that fits); "reset" (the
    connection is reset in the middle); "silent" (never answers); "hang" (half of the body, then
    nothing). ``partners``: requests wait until this many have come.
    """

    daemon_threads = True

    def __init__(self, body: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.body, self.fault = body, "none"
        self.requests: list[str] = []
        self.partners = threading.Barrier(1)
        self.is_half_sent, self.may_go_on = threading.Event(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are what these tests are about."""


@contextmanager
def serving(folder: Path) -> Iterator[ModuleServer]:
    """A server of one module, in a thread, while a block runs."""
    with ModuleServer(pack(folder)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.may_go_on.set()
        server.partners.abort()
        server.shutdown()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: ModuleServer

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        server = self.server
        server.requests.append(self.path)
        server.partners.wait(HANG_S)
        body, fault = server.body, server.fault
        if fault == "silent":
            server.may_go_on.wait(HANG_S)
        elif fault in ("404", "500"):
            self.send_error(int(fault))
        elif fault == "html" or not self._asks_for_archive():
            self._send(b"<!DOCTYPE html><title>Log in</title>", kind="text/html; charset=utf-8")
        elif fault == "short":
            self._send(body[: len(body) // 2])
        elif fault in ("cut", "reset", "hang"):
            self._send(body[: len(body) // 2], length=len(body))
            self._end(fault)
        else:
            self._send(body)

    def _asks_for_archive(self) -> bool:
        split = urlsplit(self.path)
        is_named = split.path.endswith((".tar.gz", ".tgz"))
        return is_named or parse_qs(split.query).get("tf-hub-format") == ["compressed"]

    def _send(
        self, body: bytes, *, kind: str = "application/octet-stream", length: int | None = None
    ) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def _end(self, fault: str) -> None:
        self.close_connection = True
        if fault == "hang":
            self.server.is_half_sent.set()
            self.server.may_go_on.wait(HANG_S)
        if fault == "reset":
            # Closing with an unsent rest and a linger of nothing sends RST, not FIN.
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()


def flip_byte(packed: bytes, *, num_bytes: int = 0) -> bytes:
    """The same archive with one byte of its content changed, under its old checksum.

    ``num_bytes``: zeros follow to this many unpacked, as tar allows, before the change.
    """
    content = bytearray(gzip.decompress(packed).ljust(num_bytes, b"\0"))
    checksum = gzip.compress(bytes(content))[-8:]
    content[content.index(b"saved_model.pb") + 1024] ^= 1
    return gzip.compress(bytes(content))[:-8] + checksum


FETCH = """
import sys
from pathlib import Path
from embedcache.modules.handles import resolve_handle
path = resolve_handle(sys.argv[1])
assert not {"tensorflow", "tensorflow_hub", "keras"} & set(sys.modules)
print(path)
"""


def run_fetch(handle: str, before: str = "") -> subprocess.Popen[str]:
    """Resolve a handle in another process, which asserts that TensorFlow stays out."""
    return subprocess.Popen(
        [sys.executable, "-c", before + FETCH, handle], stdout=subprocess.PIPE, text=True
    )


def files_below(path: Path) -> set[str]:
    return {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}


def refusal(module_cache: ModuleCache, handle: str) -> str:
    """The one line with which a fetch is refused; it leaves nothing behind."""
    with pytest.raises(ModuleError) as error:
        module_cache.fetch(handle)
    message = str(error.value)
    assert "\n" not in message
    assert files_below(module_cache.path) == set()
    return message


def write_archive(tmp_path: Path, packed: bytes, name: str = "m.tar.gz") -> str:
    (tmp_path / name).write_bytes(packed)
    return str(tmp_path / name)


def member(name: str, *, kind: bytes = tarfile.REGTYPE, size: int = 1) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.mode = kind, "../../secret", 0o644
    made.size = size if kind == tarfile.REGTYPE else 0
    return made
