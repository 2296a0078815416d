"""Computers over the fakes and a real store."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import embedcache
from embedcache.compute.choosing import make_computer
from embedcache.compute.fidelity import Fidelity
from embedcache.compute.missing import Computer
from embedcache.store.writer import ShardWriter, WriterLimits
from embedcache.view import FeatureView
from tests.embedcache.compute.fakes import FakeSequenceEncoder, FakeTokenEncoder

MakeComputer = Callable[..., tuple[Computer, ShardWriter]]


@pytest.fixture
def make(store: embedcache.FeatureStore) -> MakeComputer:
    """Makes a computer over a fake, and the writer of a real store that it hands texts to."""

    def make_one(
        encoder: FakeSequenceEncoder | FakeTokenEncoder,
        view: FeatureView,
        *,
        batch_tokens: int = 64,
        limits: WriterLimits | None = None,
        on_batch: Callable[[], None] = lambda: None,
    ) -> tuple[Computer, ShardWriter]:
        store.catalog.add_view(view, "fake")
        writer = store.writer(view, limits=limits)
        computer = make_computer(
            encoder,
            writer,
            view,
            fidelity=Fidelity("fake", view.dtype),
            batch_tokens=batch_tokens,
            on_batch=on_batch,
        )
        return computer, writer

    return make_one
