"""Waiting for what another process or task brings about."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

LONGEST_S = 60.0


async def until(condition: Callable[[], object]) -> None:
    """Wait until something holds; a test that waits for a minute has failed."""
    async with asyncio.timeout(LONGEST_S):
        while not condition():
            await asyncio.sleep(0.005)
