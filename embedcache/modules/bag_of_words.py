"""Bag-of-words modules: string → vector, where a text's vector combines its tokens'.

nnlm, gnews-swivel, Wiki-words and `builtin:en-words-128` are of this kind. They return one
vector a text; the matrix a convolution needs is got by calling them on each token alone.
A probe shows that this is sound: that the rows combine to the module's own text vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache.encoder import TokenizedTexts
from embedcache.errors import EncodingError, ModuleError
from embedcache.modules.aligning import align_texts
from embedcache.modules.facts import BAG_OF_WORDS, ModuleFacts
from embedcache.modules.saved_model import mapped_errors, string_call
from embedcache.modules.splitting import split_texts

TOKENS_PER_CALL = 4096
OWN_TOKENIZER = "module"
_TOLERANCE = 1e-4
# Words of several languages, so that a module of one of them knows some; repeated words,
# punctuation and runs of spaces, so that modules which treat those apart are told apart.
_PROBE_TEXTS = (
    "the cat sat on the mat",
    "a good film , and not a long one .",
    "hello world hello",
    "der Hund und die Katze",
    "el perro y la casa de la playa",
    "le chat est sur la table",
    "two  spaces",
    "a tab\there and\na line",
    "2 + 2 = 4 !",
    "今日 は いい 天気",
)
# In this order: the first that explains the module's vectors is taken.
_TOKENIZERS = ("space", "space-nonempty", "whitespace", "space-words", "whitespace-words")

_ASSET_BYTES = 1 << 16
_ASSET_WORDS = 12
"""Of a module's own vocabulary that the probe takes, and how much of it is read."""

_COMBINERS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "sqrtn": lambda rows: rows.sum(axis=0) / np.sqrt(max(1, len(rows))),
    "mean": lambda rows: rows.sum(axis=0) / max(1, len(rows)),
    "sum": lambda rows: rows.sum(axis=0),
}


def combine_rows(rows: NDArray[Any], combiner: str) -> NDArray[Any]:
    """The text vector, (dim,), that a module of this combiner makes of its rows (n, dim).

    The formulas are those of TensorFlow's ``embedding_lookup_sparse``: the sum, divided by
    n for ``mean`` and by √n for ``sqrtn``.
    """
    return _COMBINERS[combiner](rows)


class BagOfWordsEncoder:
    """A `TokenEncoder` over a loaded bag-of-words module."""

    def __init__(self, handle: str, model: Any, facts: ModuleFacts) -> None:
        self._handle = handle
        self._model = model
        self._facts = facts
        self._call = string_call(model, facts.signature, facts.output)

    @property
    def dim(self) -> int:
        """The width of the matrices."""
        return self._facts.dim

    @property
    def num_traces(self) -> int:
        """None: the module's own functions are called, which are traced already."""
        return 0

    def tokenize_texts(self, texts: Sequence[bytes]) -> TokenizedTexts:
        """UTF-8 texts → their tokens: by the module's own ``tokenize``, else as the probe found."""
        if self._facts.tokenizer != OWN_TOKENIZER:
            return split_texts(texts, self._facts.tokenizer)
        with mapped_errors(self._handle, "its tokenize does not take a batch of strings"):
            tokens, splits = _tokenize_by_module(self._model, texts)
        return TokenizedTexts(tokens, splits, align_texts(texts, tokens, splits))

    def token_lengths(self, tokens: Sequence[bytes]) -> NDArray[np.int64]:
        """One each: a word is looked up."""
        return np.ones(len(tokens), np.int64)

    def embed_tokens(self, tokens: Sequence[bytes]) -> NDArray[np.float32]:
        """Tokens → their rows, (n, dim) float32, in their order.

        Raises:
            ModuleError: if the module splits one of them further.
            EncodingError: if it returns another shape than a row a token.
        """
        if self._facts.tokenizer == OWN_TOKENIZER:
            self._check_tokens(tokens)
        rows = np.empty((len(tokens), self.dim), np.float32)
        for start in range(0, len(tokens), TOKENS_PER_CALL):
            chunk = tokens[start : start + TOKENS_PER_CALL]
            rows[start : start + len(chunk)] = self.embed_sentences(chunk)
        return rows

    def embed_sentences(self, texts: Sequence[bytes]) -> NDArray[np.float32]:
        """The module's own vector of each text, (n, dim) float32."""
        with mapped_errors(self._handle, "failed on a batch of strings"):
            vectors = self._call(texts)
        if vectors.shape != (len(texts), self.dim):
            raise EncodingError(
                f"{self._handle}: returned shape {vectors.shape} for {len(texts)} texts; expected"
                f" {(len(texts), self.dim)}. It is not a text module, or its files are damaged"
            )
        return vectors

    def text_difference(self, text: bytes, rows: NDArray[np.float32]) -> float | None:
        """How far a text's rows, combined, are from the module's own vector of it."""
        own = self.embed_sentences([text])[0]
        difference = np.abs(combine_rows(rows, self._facts.combiner) - own).max(initial=0.0)
        return float(difference) / max(1.0, float(np.abs(own).max(initial=0.0)))

    def _check_tokens(self, tokens: Sequence[bytes]) -> None:
        _, splits = _tokenize_by_module(self._model, tokens)
        lengths = np.diff(splits)
        if not (lengths == 1).all():
            token = tokens[int(np.argmin(lengths == 1))]
            raise ModuleError(
                f"{self._handle}: its tokenize splits its own token"
                f" {token.decode(errors='replace')!r} further, so tokens cannot be embedded alone;"
                " use another module"
            )


def probe_bag_of_words(
    handle: str, model: Any, path: Path, facts: ModuleFacts
) -> ModuleFacts | None:
    """Find out whether, and how, a module's vectors combine those of tokens.

    Args:
        handle: The module's, for messages.
        model: Loaded.
        path: Its folder, among whose assets its vocabulary may lie.
        facts: With the signature, output and dim of its vectors.

    Returns:
        The facts with the tokenizer and combiner; None if no known ones explain them.

    Raises:
        ModuleError: if it fails on the probe's sentences.
    """
    texts = [text.encode() for text in _PROBE_TEXTS] + _texts_of_assets(path)
    own = (OWN_TOKENIZER,) if hasattr(model, "tokenize") else ()
    for tokenizer in (*own, *_TOKENIZERS):
        found = replace(facts, kind=BAG_OF_WORDS, tokenizer=tokenizer)
        combiner = _find_combiner(BagOfWordsEncoder(handle, model, found), texts)
        if combiner is not None:
            return replace(found, combiner=combiner)
    return None


def _texts_of_assets(path: Path) -> list[bytes]:
    """Texts of a module's own words: of a language, say, of which the probe has none."""
    texts: list[bytes] = []
    for file in sorted((path / "assets").glob("*")):
        with file.open("rb") as opened:
            lines = opened.read(_ASSET_BYTES).split(b"\n")[:-1]
        words = [line.split(b"\t")[0] for line in lines if line and b" " not in line]
        # Some from the beginning, some from farther down: word, word word, word word word.
        chosen = words[:: max(1, len(words) // _ASSET_WORDS)][:_ASSET_WORDS]
        if _is_text(b"".join(chosen)):
            texts += [b" ".join(chosen[:size]) for size in range(2, len(chosen) + 1, 2)]
    return texts


def _is_text(content: bytes) -> bool:
    """Whether bytes are UTF-8 without control characters: not those of a binary file."""
    try:
        return content.decode().isprintable()
    except UnicodeDecodeError:
        return False


def _find_combiner(encoder: BagOfWordsEncoder, texts: Sequence[bytes]) -> str | None:
    """How an encoder's rows combine to its module's vectors; None: in no known way."""
    vectors = encoder.embed_sentences(texts)
    try:
        tokenized = encoder.tokenize_texts(texts)
        rows = encoder.embed_tokens(tokenized.tokens)
    except ModuleError:
        return None  # its own tokenize splits its tokens further, or takes no batch
    matrices = np.split(rows, tokenized.row_splits[1:-1])
    return next((name for name in _COMBINERS if _combines(matrices, vectors, name)), None)


def _combines(matrices: list[NDArray[Any]], vectors: NDArray[Any], combiner: str) -> bool:
    combined = np.stack([combine_rows(rows, combiner) for rows in matrices])
    scale = max(1.0, float(np.abs(vectors).max()))
    if not np.abs(vectors).any():
        return False
    return bool(np.abs(combined - vectors).max() <= _TOLERANCE * scale)


def _tokenize_by_module(
    model: Any, texts: Sequence[bytes]
) -> tuple[list[bytes], NDArray[np.int64]]:
    import tensorflow as tf

    ragged = model.tokenize(tf.constant(list(texts), tf.string))
    tokens: list[bytes] = ragged.flat_values.numpy().tolist()
    return tokens, np.asarray(ragged.row_splits.numpy(), np.int64)
