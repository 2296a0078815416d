"""WorkerProcess: one child process that does what the server's own process must not.

It imports TensorFlow or Keras, and takes the time that it takes, while the server goes on.
A message is the name of a method of the object that the child has made, with its arguments;
messages and answers are pickled, behind eight bytes that tell their length, over a socket
that nobody else has.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from typing import Any

from embedcache.errors import EmbedCacheError
from embedcache.service.errors import ServiceProblem
from embedcache.service.worker_child import LENGTH_BYTES, Answer, length_of, packed

_CHILD = (
    "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "signal.signal(signal.SIGINT, signal.SIG_IGN); sys.path[:] = sys.argv[3:];"
    "from embedcache.service.worker_child import run_child;"
    "run_child(int(sys.argv[1]), sys.argv[2])"
)
_END_TIMEOUT_S = 5.0
_RETRY_AFTER_S = 1.0


class WorkerFaultError(EmbedCacheError):
    """A worker met an error that nobody expected; it goes on."""


class WorkerProcess:
    """A child process that is started at the first call, and anew after it has died.

    For one event loop. Calls are answered one after the other, in the order in which they
    were made. The child ignores SIGINT and SIGTERM, of which a terminal or a service manager
    sends it its own; it ends when this process closes the socket, or is gone.

    Args:
        target: ``"package.module:function"``: makes, in the child, the object whose methods
            are called, and whose ``close`` at the end.
        arguments: The function's, pickled.
        name: What messages call it.
    """

    def __init__(self, target: str, arguments: tuple[Any, ...], *, name: str) -> None:
        self._target = target
        self._arguments = arguments
        self._name = name
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._turn = asyncio.Lock()
        self._is_closed = False

    @property
    def pid(self) -> int | None:
        """Of the child; None as long as none was needed, and after one has died."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the child's object.

        Cancelling it leaves the child at work, and the next call waits for it.

        Returns:
            What the method returned.

        Raises:
            EmbedCacheError: what the method raised.
            WorkerFaultError: if it raised anything else.
            ServiceProblem: 503, if the child died meanwhile, or the worker is closed.
        """
        # In a task of its own: an answer that nobody waits for any more must still be read.
        answer: Answer = await asyncio.shield(self._exchange(method, arguments))
        if answer.error is not None:
            raise answer.error
        if answer.fault:
            raise WorkerFaultError(f"unexpected {answer.fault}")
        return answer.value

    def _exchange(self, method: str, arguments: tuple[Any, ...]) -> asyncio.Task[Answer]:
        task = asyncio.create_task(self._exchange_in_turn(method, arguments))
        # What it raised has been seen, whether or not somebody still waits.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    async def _exchange_in_turn(self, method: str, arguments: tuple[Any, ...]) -> Answer:
        async with self._turn:
            if self._is_closed:
                raise ServiceProblem(
                    503, "draining", "the service is ending", retry_after_s=_RETRY_AFTER_S
                )
            try:
                reader, writer = await self._streams()
                return await _exchange(reader, writer, (method, arguments))
            except (OSError, EOFError) as error:
                cause = await self._bury()
                raise ServiceProblem(
                    503,
                    "worker_died",
                    f"the {self._name} process {cause}; it is started anew: send the request again",
                    retry_after_s=_RETRY_AFTER_S,
                ) from error

    async def _streams(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The streams to the child, which is started where there is none."""
        if self._process is not None and self._process.poll() is not None:
            await self._bury()
        if self._reader is None or self._writer is None:
            ours, theirs = socket.socketpair()
            try:
                # Not here: forking a large process stops it for some milliseconds.
                self._process = await asyncio.to_thread(_start, theirs, self._target)
            finally:
                theirs.close()
            self._reader, self._writer = await asyncio.open_unix_connection(sock=ours)
            self._writer.write(packed(self._arguments))
        return self._reader, self._writer

    async def _bury(self) -> str:
        """Forget a child that has died, or has closed its end; how it ended."""
        process, self._process = self._process, None
        writer, self._writer, self._reader = self._writer, None, None
        if writer is not None:
            await _close(writer)
        if process is None:
            return "could not be started"
        status = await _ended(process, timeout_s=_END_TIMEOUT_S)
        if status < 0:
            name = signal.Signals(-status).name
            return f"was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
        return f"ended with status {status}"

    async def close(self, timeout_s: float = _END_TIMEOUT_S) -> None:
        """End the child; one that does not end by itself within the time is killed.

        Fine if there is none. What it is at, is cut off.
        """
        self._is_closed = True
        await self._end(timeout_s)
        # A call that was in flight has met the child's end; or has just started another one.
        async with self._turn:
            await self._end(timeout_s)

    async def _end(self, timeout_s: float) -> None:
        process, writer = self._process, self._writer
        if writer is not None:
            await _close(writer)
        if process is not None:
            await _ended(process, timeout_s=timeout_s)


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    # A connection that broke has been told of elsewhere.
    with suppress(OSError):
        await writer.wait_closed()


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, message: object
) -> Answer:
    writer.write(packed(message))
    await writer.drain()
    length = length_of(await reader.readexactly(LENGTH_BYTES))
    # From a child of this very program, over a socket that nobody else has.
    answer: Answer = pickle.loads(await reader.readexactly(length))  # noqa: S301
    return answer


def _start(theirs: socket.socket, target: str) -> subprocess.Popen[bytes]:
    environment = {"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ}
    # Libraries write there what is for nobody; but what a crash says is for who looks into it.
    is_debugged = bool(os.environ.get("EMBEDCACHE_TRACEBACK"))
    return subprocess.Popen(  # noqa: S603 - this program itself
        [sys.executable, "-c", _CHILD, str(theirs.fileno()), target, *sys.path],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=None if is_debugged else subprocess.DEVNULL,
        pass_fds=[theirs.fileno()],
        env=environment,
    )


async def _ended(process: subprocess.Popen[bytes], *, timeout_s: float) -> int:
    """Wait for a process, and kill it after the time; its exit status."""
    with suppress(subprocess.TimeoutExpired):
        return await asyncio.to_thread(process.wait, timeout_s)
    process.kill()
    return await asyncio.to_thread(process.wait)
