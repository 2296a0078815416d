"""What runs in a worker's process: it answers messages until the server closes the socket."""

from __future__ import annotations

import os
import pickle
import select
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from embedcache.errors import EmbedCacheError

LENGTH_BYTES = 8

_GRACE_S = 5.0
"""A shard that is being written when the server goes, is written; a module is not waited for."""
_STATUS_ORPHANED = 3
_NICENESS = 5
"""Hits go first where all cores are busy: the module takes as many as there are."""


class _Stream(Protocol):
    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker answers.

    Attributes:
        value: What the method returned.
        error: What it raised, of the kinds that embedcache raises on purpose; None if nothing.
        fault: What it raised of any other kind, in words; empty if nothing.
    """

    value: Any = None
    error: EmbedCacheError | None = None
    fault: str = ""


def packed(message: object) -> bytes:
    """A message as it goes over the socket."""
    content = pickle.dumps(message)
    return len(content).to_bytes(LENGTH_BYTES, "little") + content


def length_of(prefix: bytes) -> int:
    """The bytes of the message that follows."""
    return int.from_bytes(prefix, "little")


def run_child(descriptor: int, target: str) -> None:
    """Answer messages until the other end is closed.

    Args:
        descriptor: Of the socket.
        target: ``"package.module:function"``; the first message has its arguments.
    """
    os.nice(_NICENESS)
    with socket.socket(fileno=descriptor) as connection, connection.makefile("rwb") as stream:
        _end_with_server(connection)
        module, _, function = target.partition(":")
        made = getattr(import_module(module), function)(*_received(stream))
        with suppress(EOFError, OSError):
            while True:
                method, arguments = _received(stream)
                stream.write(_packed_answer(made, method, arguments))
                stream.flush()
        made.close()
        # Without taking TensorFlow apart, which takes seconds and is for nobody.
        os._exit(0)


def _received(stream: _Stream) -> Any:
    """The next message.

    Raises:
        EOFError: if the other end is closed.
    """
    length = length_of(_read(stream, LENGTH_BYTES))
    # From the process that started this one, over a socket that nobody else has.
    return pickle.loads(_read(stream, length))  # noqa: S301


def _read(stream: _Stream, size: int) -> bytes:
    content = stream.read(size)
    if len(content) < size:
        raise EOFError
    return content


def _packed_answer(made: Any, method: str, arguments: tuple[Any, ...]) -> bytes:
    try:
        return packed(Answer(getattr(made, method)(*arguments)))
    except EmbedCacheError as error:
        return packed(Answer(error=_plain(error)))
    except Exception as error:  # the last boundary: what a backend raises costs one call
        reason = " ".join(str(error).split())[:300]
        return packed(Answer(fault=f"{type(error).__name__}: {reason}"))


def _plain(error: EmbedCacheError) -> EmbedCacheError:
    """The error as one of `embedcache.errors`, which are made of their message alone."""
    kinds = [kind for kind in type(error).__mro__ if kind.__module__ == EmbedCacheError.__module__]
    plain: EmbedCacheError = kinds[0](str(error))
    return plain


def _end_with_server(connection: socket.socket) -> None:
    """End this process some seconds after the server is gone, whatever it is at then."""
    hung_up = select.poll()
    hung_up.register(connection, 0)

    def watch() -> None:
        hung_up.poll()
        threading.Event().wait(_GRACE_S)
        os._exit(_STATUS_ORPHANED)

    threading.Thread(target=watch, name="end-with-server", daemon=True).start()
