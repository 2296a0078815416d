"""Ctrl-C and SIGTERM at any moment of a build: what was finished stays, the next one goes on.

The build is the command itself, over a module made of NumPy, so that it takes half a second.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import cli.build  # noqa: F401 - commands are imported when they are called: here, once
from cli import main as command_line
from embedcache import precompute
from embedcache.keys import keys_of_texts
from embedcache.ragged import RaggedArray
from embedcache.store.store import open_store
from embedcache.store.upkeep.maintain import verify_store
from embedcache.store.writer import WriterLimits
from embedcache.view import FeatureView
from tests.embedcache.compute.fakes import FakeSequenceEncoder, make_view, text_of
from tests.reliability.bugs import seed_bug
from tests.reliability.outcome import Findings, Outcome
from tests.reliability.processes import Child, Ended, Tell

TITLE = "Ctrl-C and SIGTERM during a build"
SHORT = {"num_interruptions": 5}
FULL = {"num_interruptions": 200}

_NUM_TEXTS = 600
_SHARD_TEXTS = 40
_BATCH_TOKENS = 128
_PAUSE_S = 0.002
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_STATUS_INTERRUPTED = 130
_HANDLE = "builtin:numbers"
_VIEW = make_view()


def run(folder: Path, *, num_interruptions: int, seed: int, bug: str = "") -> Outcome:
    """Interrupt a build at a random moment, and build again, on a new store each time.

    Args:
        folder: For the corpus and the stores.
        num_interruptions: How often; every other one by SIGTERM.
        seed: Of the moments and of the corpus.
        bug: A seeded one, of the build after the interruption.
    """
    rng = random.Random(seed)
    findings = Findings()
    texts = _write_corpus(folder / "corpus.txt", rng)
    _build(folder, "warm")
    started = time.monotonic()
    whole, _ = _build(folder, "whole")
    longest_s = time.monotonic() - started
    whole.check(findings, "the build that nothing interrupts")
    expected = _content(folder / "whole", texts)
    num_late, num_kept = 0, 0
    for number in range(num_interruptions):
        path = folder / "store"
        shutil.rmtree(path, ignore_errors=True)
        stop = _Stop(_SIGNALS[number % 2], rng.uniform(0, 0.9 * longest_s))
        where = f"interruption {number}: {stop.number.name} after {stop.delay_s:.3f} s"
        ended, _ = _build(folder, "store", stop=stop)
        if ended.status == 0:
            num_late += 1
        elif ended.status != _STATUS_INTERRUPTED:
            findings.add_crashed(where, f"status {ended.status}: {ended.errors[-600:]}")
        elif not _is_one_line(ended.errors):
            findings.add_wrong(where, f"not told on one line: {ended.errors[-300:]}")
        num_there = _check_interrupted(path, texts, findings, where)
        num_kept += num_there
        ended, report = _build(folder, "store", bug=bug)
        _check_resumed(ended, report, len(texts) - num_there, findings, where)
        if _content(path, texts) != expected:
            findings.add_wrong(where, "not what a build makes that nothing interrupts")
    done = (
        f"{num_interruptions} interruptions ({num_late} came too late), {num_kept:,} of"
        f" {num_interruptions * len(texts):,} texts were there and not computed again"
    )
    return Outcome(done=done, findings=findings)


@dataclass(frozen=True, slots=True)
class _Stop:
    """Which signal, and when after the build's beginning."""

    number: signal.Signals
    delay_s: float


def _write_corpus(path: Path, rng: random.Random) -> list[str]:
    """Distinct texts of decimal numbers."""
    texts = dict.fromkeys(
        text_of([rng.randrange(2000) for _ in range(rng.randint(1, 9))]).decode()
        for _ in range(_NUM_TEXTS)
    )
    path.write_text("\n".join(texts) + "\n", encoding="ascii")
    return list(texts)


def _build(
    folder: Path, name: str, *, stop: _Stop | None = None, bug: str = ""
) -> tuple[Ended, dict[str, Any]]:
    """Run ``embedcache build`` in a child, interrupted or not; and its report."""
    output = folder / "report.json"

    def body(tell: Tell) -> None:
        seed_bug(bug)
        _use_numbers()
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        words = ["--store", str(folder / name), "build", str(folder / "corpus.txt")]
        sys.argv = ["embedcache", *words, "--batch-tokens", str(_BATCH_TOKENS), "--json"]
        # As `main` does: the first moment after it has begun is the first that counts.
        signal.signal(signal.SIGTERM, command_line._interrupt)
        tell("begins")
        try:
            command_line.main()
        except SystemExit as left:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(int(left.code or 0))

    child = Child(body)
    if stop is not None:
        child.wait_for_word()
        time.sleep(stop.delay_s)
        child.kill(stop.number)
    ended = child.wait()
    text = output.read_text(encoding="utf-8")
    report: dict[str, Any] = json.loads(text) if ended.status == 0 else {}
    return ended, report


def _use_numbers() -> None:
    """Builds of this process go through a module of NumPy, and close their shards soon."""
    precompute.pin_module = lambda *_, **__: _Numbers()  # type: ignore[assignment,misc]
    WriterLimits.__init__.__kwdefaults__["max_texts"] = _SHARD_TEXTS


class _Numbers:
    """What stands for a pinned module."""

    handle = _HANDLE
    preprocess_handle = ""

    def view(self, _settings: object) -> FeatureView:
        return _VIEW

    def load_encoder(self, _view: FeatureView) -> FakeSequenceEncoder:
        return _SlowEncoder()


class _SlowEncoder(FakeSequenceEncoder):
    """Takes a moment for each batch, as a module does."""

    def encode_batch(
        self, tokens: NDArray[np.int32], lengths: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        time.sleep(_PAUSE_S)
        return super().encode_batch(tokens, lengths)


def _is_one_line(errors: str) -> bool:
    # click leaves the line on which a terminal shows ^C.
    (line, *more) = errors.strip().splitlines() or [""]
    return line.startswith("interrupted: ") and not more


def _check_interrupted(path: Path, texts: list[str], findings: Findings, where: str) -> int:
    """Nothing half is catalogued; how many texts the interrupted build has left."""
    with open_store(path) as store:
        report = verify_store(store)
        for fault in (*report.corrupt, *report.missing):
            findings.add_wrong(where, f"catalogued and not whole: {fault}")
        return int(store.contains(_VIEW, texts).sum())


def _check_resumed(
    ended: Ended, report: dict[str, Any], num_missing: int, findings: Findings, where: str
) -> None:
    ended.check(findings, f"{where}, the next build")
    if ended.status:
        findings.add_lost(where, f"the next build fails: {ended.errors.strip()[-300:]}")
    elif report["misses"] != num_missing:
        findings.add_wrong(where, f"computed {report['misses']} texts, {num_missing} were missing")


def _content(path: Path, texts: list[str]) -> tuple[bytes, ...]:
    """All features, and the datasets' keys."""
    with open_store(path, create=False) as store:
        features: RaggedArray = store.get(_VIEW, texts)
        datasets = [store.open_dataset(record) for record in store.catalog.datasets()]
        keys = [dataset.keys.tobytes() for dataset in datasets]
        assert keys in ([], [keys_of_texts(texts).tobytes()])
        return features.values.tobytes(), features.row_splits.tobytes(), *keys
