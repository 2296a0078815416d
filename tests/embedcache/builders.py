"""A builder as a process: a real build with a module of NumPy that can be held up.

    python builders.py STORE CORPUS [SETTINGS]

SETTINGS is a JSON object with fields of `Settings`. It says "ready", waits for a line on
standard input, and builds. It says "computing" when it is held up, "blocked N" when it begins
to wait for others, N documents read, and at the end the report as JSON. Status 1 for an error
of embedcache and 130 for an interruption, as the command line has it.
"""

from __future__ import annotations

import faulthandler
import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

import embedcache
from embedcache import misses, precompute
from embedcache.compute.sequences import SequenceComputer
from embedcache.errors import EmbedCacheError, ModuleError
from embedcache.pinning import PinnedModule
from embedcache.precompute import BuildOptions, BuildProgress
from embedcache.store.leases import WorkLeases
from embedcache.store.store import FeatureStore
from embedcache.store.writer import WriterLimits
from embedcache.view import FeatureView
from tests.embedcache.compute.fakes import FakeSequenceEncoder, make_view

VIEW = make_view(dtype="float32")
BATCH_TOKENS = 512


@dataclass(frozen=True)
class Settings:
    """How one builder is to behave.

    Attributes:
        delay_s: What a batch of some hundred texts takes.
        gate: A file: the module stops at a batch until it is there; "" for none.
        gate_after: Batches before that one.
        fails: Whether the module fails behind the gate.
        max_texts: Texts that a shard holds at most.
        aside_bytes: `MAX_ASIDE_BYTES`; 0: as it is.
        bug: Whether leases are never refused.
    """

    delay_s: float = 0.004
    gate: str = ""
    gate_after: int = 0
    fails: bool = False
    max_texts: int = 1 << 18
    aside_bytes: int = 0
    bug: bool = False


class HeldUpEncoder(FakeSequenceEncoder):
    """Slow, and stops at a gate."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings = settings
        self._num_batches = 0

    def encode_batch(
        self, tokens: NDArray[np.int32], lengths: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        time.sleep(self._settings.delay_s)
        self._num_batches += 1
        if self._settings.gate and self._num_batches > self._settings.gate_after:
            gate = Path(self._settings.gate)
            if not gate.exists():
                print("computing", flush=True)
            while not gate.exists():
                time.sleep(0.002)
            if self._settings.fails:
                raise ModuleError("the module has failed")
        return super().encode_batch(tokens, lengths)


@dataclass(frozen=True)
class FakePinnedModule:
    """What a build uses of a `PinnedModule`."""

    settings: Settings
    handle: str = "fake"

    def load_encoder(self, _view: FeatureView) -> HeldUpEncoder:
        return HeldUpEncoder(self.settings)


@contextmanager
def module_of_numpy(settings: Settings) -> Iterator[None]:
    """Let every build of this process use it."""

    def open_view(
        store: FeatureStore, _handle: str, _options: BuildOptions
    ) -> tuple[PinnedModule, FeatureView]:
        store.catalog.add_view(VIEW, "fake")
        return cast("PinnedModule", FakePinnedModule(settings)), VIEW

    real: Any = precompute.open_view
    precompute.open_view = open_view
    try:
        yield
    finally:
        precompute.open_view = real


def make_buffers_small() -> None:
    """Let builders take turns on corpora of some thousand texts."""
    SequenceComputer.buffer_texts = 2048


def seed_bug() -> None:
    """Grant every lease."""
    WorkLeases.try_take = lambda *_: True  # type: ignore[method-assign]
    WorkLeases.wait_for = WorkLeases.release = lambda *_: None  # type: ignore[method-assign]


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main(path: str, corpus: str, settings_json: str = "{}") -> int:
    """Build once."""
    settings = Settings(**json.loads(settings_json))
    # A builder that hangs says where, and ends; so does its test.
    faulthandler.dump_traceback_later(120, exit=True)
    signal.signal(signal.SIGTERM, _interrupt)
    make_buffers_small()
    if settings.aside_bytes:
        misses.MAX_ASIDE_BYTES = settings.aside_bytes
    if settings.bug:
        seed_bug()
    limits = WriterLimits(max_texts=settings.max_texts)
    options = BuildOptions(batch_tokens=BATCH_TOKENS, limits=limits)
    was_blocked = False

    def show(progress: BuildProgress) -> None:
        nonlocal was_blocked
        if progress.is_blocked and not was_blocked:
            print("blocked", progress.texts, flush=True)
        was_blocked = progress.is_blocked

    with embedcache.open_store(path) as store:
        print("ready", flush=True)
        sys.stdin.buffer.readline()
        try:
            with module_of_numpy(settings):
                report = embedcache.build(store, corpus, options=options, on_progress=show)
        except KeyboardInterrupt:
            return 130
        except EmbedCacheError as error:
            print(error, file=sys.stderr)
            return 1
    print(json.dumps(report.to_record()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
