"""ServiceState: whether a service is ending, and how many requests it is answering."""

from __future__ import annotations

import asyncio


class ServiceState:
    """Of one service; for the event loop's thread alone."""

    def __init__(self) -> None:
        self.is_draining = False
        """Whether new work is refused, as the service is ending."""
        self._in_flight = 0
        self._idle: asyncio.Event | None = None

    @property
    def in_flight(self) -> int:
        """Requests that are being answered."""
        return self._in_flight

    def enter(self) -> None:
        """A request has come."""
        self._in_flight += 1

    def leave(self) -> None:
        """A request has been answered."""
        self._in_flight -= 1
        if self._in_flight == 0 and self._idle is not None:
            self._idle.set()

    async def idle(self) -> None:
        """Wait until no request is being answered."""
        self._idle = asyncio.Event()
        if self._in_flight:
            await self._idle.wait()
