"""A service in a process of its own that tells of every text which it has acknowledged.

    python -m tests.embedcache.service.acknowledging_server STORE CYCLE [early]

It asks for new texts without end, several at once; each line of its output is a text whose
features a client has got. "worker PID" comes first. It is there to be killed. With "early" it
has a bug: it tells of a text before it is computed.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from pathlib import Path

from embedcache.service.errors import ServiceProblem
from embedcache.store.store import open_store
from tests.embedcache.service.feature_service import Bench, bench_of

_NUM_CLIENTS = 8


async def ask_for_ever(bench: Bench, client: int, cycle: int, *, is_early: bool) -> None:
    for number in itertools.count():
        # Every other one is asked for by all clients at once.
        first = 0 if number % 2 else client
        texts = [f"{cycle} {first} {number} {place}" for place in range(1 + number % 3)]
        if is_early:
            print("\n".join(texts), flush=True)
        try:
            features = await bench.service.features(
                bench.view, texts, may_compute=True, deadline=time.monotonic() + 60
            )
        except ServiceProblem as problem:
            if problem.code != "worker_died":
                raise
            # It was killed; the client asks again.
            continue
        features.reader.gather(features.refs)
        if not is_early:
            print("\n".join(texts), flush=True)


async def main(path: str, cycle: int, bug: str = "") -> None:
    with open_store(Path(path)) as store:
        async with bench_of(store, compact_after=4) as bench:
            await bench.ask(f"{cycle} 999999")
            print("worker", bench.service.worker_pid, flush=True)
            asking = [
                ask_for_ever(bench, client, cycle, is_early=bug == "early")
                for client in range(_NUM_CLIENTS)
            ]
            await asyncio.gather(*asking)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:]))
