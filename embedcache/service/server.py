"""A service's process, from its socket to its exit status."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
import uvloop

from embedcache.errors import ServiceError
from embedcache.service.access_log import AccessLog
from embedcache.service.app import create_app
from embedcache.service.auth import KeyRing, check_open_host, load_keys
from embedcache.service.features import FeatureService
from embedcache.service.heap import keep_freed_memory
from embedcache.service.http_protocol import ConnectionConfig
from embedcache.service.metrics import ServiceMetrics
from embedcache.service.predicting import PredictionService
from embedcache.service.services import Services
from embedcache.service.settings import ServiceSettings
from embedcache.service.state import ServiceState
from embedcache.store.store import FeatureStore, open_store

STATUS_DONE = 0
STATUS_INTERRUPTED = 130

_MAX_FILES = 1 << 16

_COMMIT_S = 1.0
"""What the end leaves at least for committing, where requests took all of its time."""


def run_server(store_path: Path, settings: ServiceSettings) -> int:
    """Serve a store until SIGTERM or SIGINT comes, and then what is in flight.

    A second signal ends the process at once; what was acknowledged is committed.

    Args:
        store_path: The store; it must be there.
        settings: What to serve, where and within which limits.

    Returns:
        The exit status: 0 after SIGTERM, 130 after SIGINT.

    Raises:
        ServiceError: if the address cannot be listened at, is open to other machines without
            API keys, or the keys cannot be read.
        UnknownNameError: if a view or a run that was named is not there.
        StoreError: if the store cannot be opened.
    """
    keys = KeyRing() if settings.api_key_file is None else load_keys(settings.api_key_file)
    check_open_host(settings.host, keys)
    max_connections = _raise_file_limit() // 2
    keep_freed_memory()
    with (
        open_store(store_path, create=False) as store,
        _bound(settings.host, settings.port) as listener,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        serving = _serve(store, settings, keys, listener=listener, max_connections=max_connections)
        return runner.run(serving)


class DrainingServer(uvicorn.Server):
    """uvicorn's server, which ends when the service has drained.

    Args:
        config: Its configuration.
        services: The service's parts.
    """

    def __init__(self, config: ConnectionConfig, services: Services) -> None:
        super().__init__(config)
        self._services = services

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `_Signals`: uvicorn would stop listening at the first one."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept connections, and say so."""
        await super().startup(sockets)
        # What there is by now stays as long as the process: no collection has to look at it
        # again, in the midst of somebody's request.
        gc.collect()
        gc.freeze()
        features, predictions = self._services.features, self._services.predictions
        counts = f"views: {len(features.views)}, runs: {len(predictions.runs)}"
        _say(f"serving {features.store.path} ({counts})")
        for listener in sockets or []:
            _say(f"listening on {_url(listener)}")

    async def drain(self) -> None:
        """Refuse new requests, answer and commit what is in flight, then stop."""
        services = self._services
        services.state.is_draining = True
        end = time.monotonic() + services.settings.limits.drain_s
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(services.settings.limits.drain_s):
                    await services.state.idle()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(_COMMIT_S, end - time.monotonic())):
                    await services.features.drain()
        finally:
            self.should_exit = True


class _Signals:
    """The first SIGTERM or SIGINT asks for the end, the second one is it. A context manager."""

    def __init__(self) -> None:
        self.first: int | None = None
        self._asked = asyncio.Event()

    def __enter__(self) -> _Signals:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._note, number)
        return self

    def __exit__(self, *_error: object) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(number)

    async def wait(self) -> None:
        """Until the first one comes."""
        await self._asked.wait()

    def _note(self, number: int) -> None:
        if self.first is not None:
            # Without any clearing up: a commit that is going on is whole or not there, and the
            # workers end with the pipes to this process.
            os._exit(STATUS_INTERRUPTED)
        self.first = number
        self._asked.set()


async def _serve(
    store: FeatureStore,
    settings: ServiceSettings,
    keys: KeyRing,
    *,
    listener: socket.socket,
    max_connections: int,
) -> int:
    metrics, state, log = ServiceMetrics(), ServiceState(), AccessLog()
    metrics.watch_in_flight(lambda: state.in_flight)
    asyncio.get_running_loop().set_exception_handler(_exception_logger(log))
    with _Signals() as signals, contextlib.closing(log):
        async with (
            FeatureService(store, settings, metrics) as features,
            PredictionService(store, settings, features) as predictions,
        ):
            services = Services(
                features=features, predictions=predictions, settings=settings, metrics=metrics,
                auth=keys, state=state, access_log=log,
            )  # fmt: skip
            config = ConnectionConfig(
                create_app(services), limits=settings.limits, max_connections=max_connections
            )
            await _serve_until_asked(DrainingServer(config, services), signals, listener)
    return STATUS_INTERRUPTED if signals.first == signal.SIGINT else STATUS_DONE


async def _serve_until_asked(
    server: DrainingServer, signals: _Signals, listener: socket.socket
) -> None:
    async def drain_when_asked() -> None:
        await signals.wait()
        _say("ending: what is in flight is finished; a second signal ends at once")
        await server.drain()

    draining = asyncio.create_task(drain_when_asked())
    try:
        await server.serve(sockets=[listener])
    finally:
        draining.cancel()
        # What went wrong while draining is told when everything is closed.
        with contextlib.suppress(asyncio.CancelledError):
            await draining


def _exception_logger(log: AccessLog) -> Any:
    """What the event loop does with an error that nobody awaits: a line without its message."""

    def note(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        log.write(
            {
                "event": "error",
                "time": round(time.time(), 3),
                "error": type(error).__name__,
                "at": str(context.get("message")),
            }
        )

    return note


@contextlib.contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket with the address: that it is free is known before the store is read.

    It listens when everything is open: until then connections are refused and do not wait.
    """
    place = f"{host}:{port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ServiceError(
            f"cannot listen at {place}: {error.strerror or error}; name an address of this machine"
        ) from None
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            raise ServiceError(
                f"cannot listen at {place}: {os.strerror(error.errno or 0)}; choose another one"
                " with --port or --host, or --port 0 for one that is free"
            ) from None
        listener.setblocking(False)
        yield listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _raise_file_limit() -> int:
    """Let as many files be open as may be: each connection is one.

    Returns:
        How many may be.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MAX_FILES if limit == resource.RLIM_INFINITY else min(limit, _MAX_FILES)


def _say(line: str) -> None:
    """A line for people, on standard error."""
    print(line, file=sys.stderr, flush=True)
