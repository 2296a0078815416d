"""What runs in workers' processes in these tests."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

import embedcache.embedder
from embedcache.encoder import TokenizedTexts
from embedcache.errors import CorpusError, ModuleError
from embedcache.pinning import PinnedModule
from embedcache.service.compute_worker import MissWorker, open_miss_worker
from embedcache.store.shards.codec import BadRowError
from embedcache.view import FeatureView
from tests.embedcache.compute.fakes import FakeSequenceEncoder, make_view

VIEW = make_view(dtype="float32", module_digest="f" * 32)
"""The one that most tests have."""

OTHER_VIEW = make_view(dtype="float32", module_digest="e" * 32)

NAN, FAILS, BREAKS, DIES, WAITS = "666", "667", "668", "669", "670"
"""Words of a text that the module of `open_fake_worker` has its ways with."""

GATE = "gate"
"""A file beside the store; the module waits at the word `WAITS` until it is there."""


class FaultyEncoder(FakeSequenceEncoder):
    """A module of NumPy that fails on some words, in its own ways."""

    def __init__(self, gate: Path) -> None:
        super().__init__()
        self._gate = gate

    def tokenize_texts(self, texts: Sequence[bytes]) -> TokenizedTexts:
        words = set(b" ".join(texts).decode().split())
        if FAILS in words:
            raise ModuleError("the module does not like the word")
        if BREAKS in words:
            raise RuntimeError("nobody expected this")
        if DIES in words:
            os._exit(7)
        while WAITS in words and not self._gate.exists():
            time.sleep(0.002)
        return super().tokenize_texts(texts)

    def encode_batch(
        self, tokens: NDArray[np.int32], lengths: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        rows = super().encode_batch(tokens, lengths)
        first = self.num_special[0]
        for row, length in enumerate(lengths.tolist()):
            rows[row, first : first + length][tokens[row, :length] == int(NAN)] = np.nan
        return rows


def open_fake_worker(store_path: str) -> MissWorker:
    """The real worker, with a module that needs no TensorFlow."""

    class FakePinned:
        handle = "fake"

        def load_encoder(self, _view: FeatureView) -> FaultyEncoder:
            return FaultyEncoder(Path(store_path).parent / GATE)

    def pin(*_: object) -> PinnedModule:
        return cast("PinnedModule", FakePinned())

    embedcache.embedder.pin_module_of_view = pin
    return open_miss_worker(store_path)


class Desk:
    """A worker that does as it is told."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._num_calls = 0

    def echo(self, value: Any) -> Any:
        self._num_calls += 1
        return value, self._num_calls

    def pid(self) -> int:
        return os.getpid()

    def fail(self, kind: str) -> None:
        if kind == "known":
            raise CorpusError("a known error")
        if kind == "of another shape":
            raise BadRowError("a row is bad", row=3)
        raise ValueError("an unknown\nerror")

    def die(self, status: int) -> None:
        os._exit(status)

    def sleep(self, seconds: float) -> str:
        (self._folder / "sleeping").touch()
        time.sleep(seconds)
        return "slept"

    def say(self) -> None:
        print("what nobody should see", flush=True)
        print("what nobody should see", file=sys.stderr, flush=True)

    def close(self) -> None:
        (self._folder / "closed").touch()


def open_desk(folder: str) -> Desk:
    return Desk(folder)


def open_nothing(folder: str) -> Desk:
    raise RuntimeError("this one never starts")
