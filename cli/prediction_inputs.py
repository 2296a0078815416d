"""The texts that `predict` is given: arguments, a file or standard input, a block at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

_MAX_BLOCK_TEXTS = 1 << 13
_MAX_BLOCK_BYTES = 1 << 28
"""Of features: what is embedded anew of a block is in memory at once."""

_BYTES_OF_TOKEN = 3
"""Of text, at least, on average: of English words and their parts there are four to six."""

Block = list[str]


@dataclass(frozen=True, slots=True)
class TextFile:
    """A file of texts, and how to read it.

    Attributes:
        path: The file; ``-`` is standard input.
        file_format: One of the formats of a corpus; None: by name and content.
        text_field: Column or field of the text; None: ``text``, else ``sentence``.
        encoding_errors: ``"strict"`` or ``"replace"``.
        max_text_bytes: Longest line or text that is read.
    """

    path: str
    file_format: str | None
    text_field: str | None
    encoding_errors: str
    max_text_bytes: int

    def iter_texts(self) -> Iterator[str]:
        """The texts, in their order.

        Raises:
            CorpusError: if one cannot be read; names its line.
        """
        from embedcache.corpus import CorpusOptions, CorpusReader, Source

        options = CorpusOptions(
            format=self.file_format,
            text_field=self.text_field,
            encoding_errors=self.encoding_errors,
            max_text_bytes=self.max_text_bytes,
        )
        for batch in CorpusReader([Source(self.path, None)], options):
            for text in batch.texts:
                yield text.decode()


def cut_blocks(texts: Iterable[str], *, row_bytes: int) -> Iterator[Block]:
    """Texts in blocks of about so many that their features fit into memory.

    Args:
        texts: Any number.
        row_bytes: Of one token's features.
    """
    most_bytes = max(1, _MAX_BLOCK_BYTES // row_bytes) * _BYTES_OF_TOKEN
    block: Block = []
    waiting = 0
    for text in texts:
        block.append(text)
        waiting += len(text)
        if len(block) >= _MAX_BLOCK_TEXTS or waiting >= most_bytes:
            yield block
            block, waiting = [], 0
    if block:
        yield block


class Notes:
    """Counts what is odd about texts, and tells each kind in one line."""

    def __init__(self) -> None:
        self._num_texts = 0
        self._counts: Counter[str] = Counter()
        self._first: dict[str, int] = {}

    def add(self, num_tokens: Sequence[int], is_cut: Sequence[bool]) -> None:
        """Look at the next texts: the tokens that the view keeps of each, and if it has more."""
        first = self._num_texts + 1
        for number, (count, cut) in enumerate(zip(num_tokens, is_cut, strict=True), first):
            if count == 0 or cut:
                kind = "empty" if count == 0 else "cut"
                self._counts[kind] += 1
                self._first.setdefault(kind, number)
        self._num_texts += len(num_tokens)

    def lines(self, *, max_tokens: int) -> list[str]:
        """A line for each kind there was."""
        said = {
            "empty": "without a token: labelled by the model's bias alone",
            "cut": f"longer than {max_tokens} tokens: what comes after them was not read",
        }
        return [
            f"note: {count:,} of {self._num_texts:,} texts {'is' if count == 1 else 'are'}"
            f" {said[kind]} (the first: text {self._first[kind]:,})"
            for kind, count in self._counts.items()
        ]
