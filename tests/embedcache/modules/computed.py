"""What the product's own compute stage makes of texts: rows by way of a real store's shard."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache.compute.choosing import make_computer
from embedcache.compute.fidelity import Fidelity, FidelityReport
from embedcache.compute.missing import ComputeCounts, MissingTexts
from embedcache.encoder import SequenceEncoder, TokenEncoder
from embedcache.keys import keys_of_texts
from embedcache.store.store import FeatureStore
from embedcache.view import FeatureView

AnyEncoder = TokenEncoder | SequenceEncoder

SPACES = (" ", "    ", "\t", " \u00a0 ")
PUNCTUATION = ("...", "?! , .", "«—»", "。、")
UNICODE = (
    "naïve café cafe\u0301 Über ÉTÉ",
    "今日はいい天気 です。 hello",
    "👍🏽 a 👨\u200d👩\u200d👧 film 🇫🇷",
    "Z\u0337a\u0335lgo cat",
    "cat\x01sat \x1b[0m\x7f \u200bdog\u200e",
    "שלום עולם مرحبا cat",
    "the\tcat\nsat\r\n on\u00a0the\u2003mat\u2028 dog",
)
PLAIN = (
    "the cat sat on the mat",
    "a good film , and not a long one .",
    "The plot was great. The acting was not! Was it fun?",
    "dog",
    "dog ",
    "two  spaces and   three",
    "x" * 300 + " cat",  # BERT takes no word of more than 100 characters
    # These two are padded to one length, if the module takes them whole.
    "of to in " * 12,
    "of to in " * 11 + "mat on",
)
TEXTS = ("", *PLAIN, *SPACES, *PUNCTUATION, *UNICODE)
LONG = "The cat sat on the mat. " * 300


@dataclass(frozen=True, slots=True)
class Computed:
    """What the compute stage made of some texts, read from the store.

    Attributes:
        matrices: Text → its rows, (num_tokens, dim).
        spans: Text → the byte ranges of its rows, (num_tokens, 2); None if not recorded.
        token_ids: Text → their vocabulary ids, (num_tokens,); None if not recorded.
        truncated: The texts that were cut.
        windowed: Those that were stitched from windows.
        counts: What the computer says it did.
        fidelity: What it found when it computed some texts again.
    """

    matrices: dict[str, NDArray[Any]]
    spans: dict[str, NDArray[np.uint32] | None]
    token_ids: dict[str, NDArray[np.uint32] | None]
    truncated: set[str]
    windowed: set[str]
    counts: ComputeCounts
    fidelity: FidelityReport


def compute_texts(
    store: FeatureStore,
    encoder: AnyEncoder,
    view: FeatureView,
    *,
    texts: Sequence[str] = TEXTS,
    batch_tokens: int = 4096,
    one_by_one: bool = False,
) -> Computed:
    """Put distinct texts through an encoder into a store, and read them back.

    Args:
        store: Has none of them under this view.
        encoder: What is tested.
        view: What the rows are stored under.
        texts: In the order of the corpus.
        batch_tokens: As ``--batch-tokens``.
        one_by_one: Each text is computed alone.
    """
    store.catalog.add_view(view, "tested")
    writer = store.writer(view)
    fidelity = Fidelity("tested", view.dtype)
    computer = make_computer(encoder, writer, view, fidelity=fidelity, batch_tokens=batch_tokens)
    for group in [[text] for text in texts] if one_by_one else [list(texts)]:
        encoded = [text.encode() for text in group]
        computer.compute(MissingTexts(keys_of_texts(group), encoded, lambda at: f"text {at + 1}"))
    writer.flush()
    refs, reader = store.locate(view, list(texts))
    records = reader.token_records(refs)
    return Computed(
        matrices=dict(zip(texts, reader.gather(refs), strict=True)),
        spans={text: record.spans for text, record in zip(texts, records, strict=True)},
        token_ids={text: record.token_ids for text, record in zip(texts, records, strict=True)},
        truncated=set(itertools.compress(texts, refs.truncated)),
        windowed=set(itertools.compress(texts, refs.windowed)),
        counts=computer.counts,
        fidelity=fidelity.report,
    )


def assert_same_rows(
    actual: Computed, expected: Computed, *, texts: Sequence[str] = TEXTS, tolerance: float = 1e-5
) -> None:
    """Fail at the first text whose rows differ."""
    for text in texts:
        np.testing.assert_allclose(
            actual.matrices[text], expected.matrices[text], rtol=0, atol=tolerance,
            err_msg=f"rows of {text[:40]!r}",
        )  # fmt: skip
