"""The tokens of a text, as text-embeddings-inference lists them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache.keys import utf8_of_text
from embedcache.store.refs import TokenRecord


def token_list(
    text: str, record: TokenRecord, *, num_tokens: int, keeps_special: bool
) -> list[dict[str, Any]]:
    """What is known of each token of a text.

    Args:
        text: The text.
        record: What the store has of its tokens.
        num_tokens: How many there are.
        keeps_special: Whether tokens that stand for nothing in the text are listed.

    Returns:
        For each token ``id``, ``text``, ``special``, ``start`` and ``stop``, the last two in
        characters of the text; ``id``, ``start`` and ``stop`` are None where they were not
        recorded, and ``text`` is empty then.
    """
    ids = [None] * num_tokens if record.token_ids is None else record.token_ids.tolist()
    if record.spans is None:
        return [_token(number, "", None, None) for number in ids]
    raw = utf8_of_text(text)
    characters = _characters_before(raw)
    tokens: list[dict[str, Any]] = []
    for number, (start, stop) in zip(ids, record.spans.tolist(), strict=True):
        if start < stop or keeps_special:
            # A token may be some of the bytes of a character only.
            part = raw[start:stop].decode(errors="replace")
            tokens.append(_token(number, part, int(characters[start]), int(characters[stop])))
    return tokens


def _token(number: int | None, text: str, start: int | None, stop: int | None) -> dict[str, Any]:
    is_special = start is not None and start == stop
    return {"id": number, "text": text, "special": is_special, "start": start, "stop": stop}


def _characters_before(raw: bytes) -> NDArray[np.int64]:
    """How many characters begin before each byte of UTF-8, and before its end: (bytes + 1,)."""
    begins = (np.frombuffer(raw, np.uint8) & 0xC0) != 0x80
    counts = np.zeros(len(raw) + 1, np.int64)
    np.cumsum(begins, out=counts[1:])
    return counts
