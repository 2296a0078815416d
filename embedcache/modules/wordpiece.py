"""WordPiece for single words: the greedy longest match of BERT's tokeniser.

Devlin et al. (2019), "BERT"; the algorithm is that of `WordpieceTokenizer` in
google-research/bert, `tokenization.py`. Needs no TensorFlow.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from embedcache.errors import ModuleError

__all__ = [
    "CONTINUATION",
    "MAX_WORD_CHARACTERS",
    "UNKNOWN_PIECE",
    "is_special",
    "load_vocab",
    "longest_piece",
    "split_word",
    "whole_words",
]

UNKNOWN_PIECE = "[UNK]"
CONTINUATION = "##"
# Longer words are one unknown piece, as in google-research/bert.
MAX_WORD_CHARACTERS = 100


def load_vocab(path: Path) -> dict[str, int]:
    """Read a `vocab.txt`, one piece a line, into piece → id, in the order of the ids.

    Raises:
        ModuleError: the file cannot be read, or holds a piece twice.
    """
    try:
        pieces = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ModuleError(f"cannot read the vocabulary {path}: {error}") from error
    if pieces and not pieces[-1]:
        pieces.pop()
    vocab = {piece.rstrip("\r"): piece_id for piece_id, piece in enumerate(pieces)}
    if len(vocab) != len(pieces):
        raise ModuleError(f"the vocabulary {path} holds a piece twice: each line must be unique")
    return vocab


def is_special(piece: str) -> bool:
    """Say whether a piece is one such as ``[CLS]``, and not a bracket that stands in texts."""
    return len(piece) > 2 and piece.startswith("[") and piece.endswith("]")


def whole_words(vocab: Mapping[str, int]) -> list[str]:
    """Return the pieces that are neither continuations nor special, in the order of `vocab`."""
    return [
        piece for piece in vocab if not piece.startswith(CONTINUATION) and not is_special(piece)
    ]


def longest_piece(vocab: Mapping[str, int]) -> int:
    """Return the characters of the longest piece, without the mark of a continuation; or 0."""
    return max((len(piece.removeprefix(CONTINUATION)) for piece in vocab), default=0)


def split_word(word: str, vocab: Mapping[str, int]) -> list[str]:
    """Split one word, already normalised, into the longest pieces from the left.

    Args:
        word: a text without spaces; it is not lower-cased here.
        vocab: the known pieces; those that begin with ``##`` continue a word.

    Returns:
        The pieces, or ``["[UNK]"]`` where some part of the word matches none.
    """
    if len(word) > MAX_WORD_CHARACTERS:
        return [UNKNOWN_PIECE]
    pieces: list[str] = []
    start = 0
    while start < len(word):
        prefix = CONTINUATION if start else ""
        for end in range(len(word), start, -1):
            piece = prefix + word[start:end]
            if piece in vocab:
                break
        else:
            return [UNKNOWN_PIECE]
        pieces.append(piece)
        start = end
    return pieces
