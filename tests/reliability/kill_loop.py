"""Kill -9 at any moment: what was acknowledged is there, and the store opens as it is."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

from embedcache.store.store import open_store
from embedcache.view import FeatureView
from tests.embedcache.store.programs import VIEW
from tests.reliability.bugs import seed_bug
from tests.reliability.history import WIDE_VIEW, Acknowledged, TellingWriter, check_store
from tests.reliability.outcome import Findings, Outcome
from tests.reliability.processes import Child, Tell

TITLE = "`kill -9` of two writers"
SHORT = {"num_cycles": 12}
FULL = {"num_cycles": 500}

_STORE_CYCLES = 10
_WIDE_EVERY = 4
_NUM_WRITES = 4
_LONGEST_S = 0.5


def run(folder: Path, *, num_cycles: int, seed: int, bug: str = "") -> Outcome:
    """Kill two writers of one store at a random moment each, again and again.

    Args:
        folder: For the stores; a new one every 10 cycles, and after one that was damaged.
        num_cycles: How often.
        seed: Of the moments and of what is written.
        bug: A seeded one.
    """
    rng = random.Random(seed)
    findings = Findings()
    longest_s = min(_LONGEST_S, _NUM_WRITES * _time_of_a_write(folder))
    path, acknowledged, num_texts, num_stored = folder / "0", Acknowledged(), 0, 0
    for cycle in range(num_cycles):
        if cycle % _STORE_CYCLES == 0 or findings.count > num_stored:
            path, acknowledged, num_stored = folder / str(cycle), Acknowledged(), findings.count
        view = WIDE_VIEW if cycle % _WIDE_EVERY == _WIDE_EVERY - 1 else VIEW
        writers = []
        for name in ("one", "two"):
            names = (f"{cycle}-{name}", f"{cycle}-both")
            writers.append(Child(_writer(path, names, view, seed=rng.random(), bug=bug)))
        _kill(writers, [rng.uniform(0, longest_s) for _ in writers])
        for writer in writers:
            ended = writer.wait()
            if ended.status != -signal.SIGKILL:
                findings.add_crashed(f"cycle {cycle}", f"{ended.status}: {ended.errors[-600:]}")
            texts = ended.told("texts")
            acknowledged.add_texts(texts, view)
            num_texts += len(texts)
        check_store(path, acknowledged, findings, where=f"cycle {cycle}")
    if num_texts == 0:
        findings.add_wrong("the harness", "nothing was acknowledged, so nothing is shown")
    done = f"{num_cycles:,} kills of 2 writers, {num_texts:,} texts acknowledged before"
    return Outcome(done=done, findings=findings)


def _time_of_a_write(folder: Path) -> float:
    """Seconds until a writer's first acknowledgement, here and now."""
    for name in ("warm", "timed"):
        started = time.monotonic()
        writer = Child(_writer(folder / name, ("a", "b"), VIEW, seed=0, bug=""))
        writer.wait_for_word()
        seconds = time.monotonic() - started
        writer.kill()
        writer.wait()
    return seconds


def _kill(children: list[Child], delays_s: list[float]) -> None:
    """Kill each after its time; while one is dead already, another goes on."""
    started = time.monotonic()
    for delay_s, child in sorted(zip(delays_s, children, strict=True), key=lambda pair: pair[0]):
        time.sleep(max(0.0, started + delay_s - time.monotonic()))
        child.kill()


def _writer(
    path: Path, names: tuple[str, str], view: FeatureView, *, seed: float, bug: str
) -> Callable[[Tell], None]:
    """A writer that does not end by itself.

    Args:
        path: The store, which need not be there.
        names: What its own texts begin with, and those that the other writes too.
        view: Theirs.
        seed: Of how many texts it adds at once, and how it closes its shards.
        bug: A seeded one.
    """

    def write(tell: Tell) -> None:
        seed_bug(bug)
        rng = random.Random(seed)
        with open_store(path) as store:
            store.catalog.add_view(view, "builtin:nothing")
            writer = TellingWriter(store, view, tell, max_texts=rng.randint(3, 12), bug=bug)
            number = 0
            while True:
                size = rng.randint(1, 5)
                each = range(number, number + size)
                writer.add([f"{names[place % 4 == 0]}-{place}" for place in each])
                number += size
                if rng.random() < 0.4:
                    writer.flush()

    return write
