"""Encoder → the computer that suits it."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from embedcache.compute.fidelity import Fidelity
from embedcache.compute.missing import Computer
from embedcache.compute.sequences import SequenceComputer
from embedcache.compute.tokens import TokenComputer
from embedcache.encoder import SequenceEncoder, TokenEncoder
from embedcache.store.writer import ShardWriter
from embedcache.view import FeatureView


def make_computer(
    encoder: TokenEncoder | SequenceEncoder,
    writer: ShardWriter,
    view: FeatureView,
    *,
    fidelity: Fidelity,
    batch_tokens: int,
    on_batch: Callable[[], None] = lambda: None,
) -> Computer:
    """A computer over an encoder.

    Args:
        encoder: Of either kind.
        writer: Takes what is computed.
        view: What it is computed under.
        fidelity: Keeps what comparing a sample shows.
        batch_tokens: Tokens that go through the module at once.
        on_batch: Called after each batch of a contextual module, which may take long.
    """
    # Not isinstance: an encoder that lacks one member of its protocol should say which.
    if hasattr(encoder, "encode_batch"):
        return SequenceComputer(
            cast("SequenceEncoder", encoder), writer, view,
            fidelity=fidelity, batch_tokens=batch_tokens, on_batch=on_batch,
        )  # fmt: skip
    return TokenComputer(encoder, writer, view, fidelity=fidelity, batch_tokens=batch_tokens)
