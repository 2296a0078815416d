"""Texts → ids of word pieces: by a Hub preprocessor, or by a module's vocabulary alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from embedcache.encoder import TokenizedTexts
from embedcache.errors import ModuleError
from embedcache.modules.facts import PREPROCESSOR, ModuleFacts
from embedcache.modules.saved_model import mapped_errors, signatures_of
from embedcache.ragged import splits_of_lengths

IDS, MASK, TYPES = "input_word_ids", "input_mask", "input_type_ids"
TOKENIZATION_SIGNATURE = "tokenization_info"
"""What tells the vocabulary of BERT in the TF1 Hub format."""
VOCABULARY_FILE = Path("assets") / "vocab.txt"
_PROBE_TEXTS = ("The Quick brown fox, jumped over 12 dogs!", "Ünïcode États 日本 naïve", "a")


@dataclass(frozen=True, slots=True)
class SpecialIds:
    """The special tokens that a sequence needs.

    Attributes:
        start: Ids before the text.
        end: Ids after it.
        padding: What pads a batch.
    """

    start: tuple[int, ...]
    end: tuple[int, ...]
    padding: int


class PieceTokenizer(Protocol):
    """Texts → ids of word pieces, without special tokens."""

    @property
    def special(self) -> SpecialIds:
        """What goes around them."""
        ...

    def tokenize_texts(self, texts: Sequence[bytes]) -> TokenizedTexts:
        """UTF-8 texts → their pieces: tokens (T,) int32, with ids and, where known, spans."""
        ...


class VocabularyTokenizer:
    """BERT's own tokenizer over a vocabulary file."""

    def __init__(self, vocabulary: Path, *, lower_case: bool) -> None:
        from embedcache.modules.bert_tokenizer import BertTokenizer

        self._tokenizer = BertTokenizer(vocabulary, lower_case=lower_case)
        pieces = self._tokenizer.special
        self.special = SpecialIds((pieces.start,), (pieces.end,), pieces.padding)

    def tokenize_texts(self, texts: Sequence[bytes]) -> TokenizedTexts:
        """UTF-8 texts → their pieces."""
        import tensorflow as tf

        found = self._tokenizer.tokenize_with_offsets(tf.constant(list(texts), tf.string))
        return _tokenized(*found)


class HubPreprocessor:
    """The preprocessor of an encoder on TF Hub, as a `PieceTokenizer`.

    Args:
        handle: Its handle, for messages.
        model: Loaded.
        path: Its folder, where its vocabulary may lie.
        facts: What its probe found.
    """

    def __init__(self, handle: str, model: Any, path: Path, facts: ModuleFacts) -> None:
        self._handle = handle
        self._model = model
        self._facts = facts
        self.special = SpecialIds(facts.start_ids, facts.end_ids, facts.padding_id)
        self._offsets: VocabularyTokenizer | None = None
        if facts.offsets in ("lower", "cased"):
            self._offsets = VocabularyTokenizer(
                path / VOCABULARY_FILE, lower_case=facts.offsets == "lower"
            )

    def tokenize_texts(self, texts: Sequence[bytes]) -> TokenizedTexts:
        """UTF-8 texts → their pieces."""
        import tensorflow as tf

        strings = tf.constant(list(texts), tf.string)
        with mapped_errors(self._handle, "failed on a batch of strings"):
            if self._facts.offsets == "module":
                return _tokenized(*_offsets_function(self._model)(strings))
            if self._facts.signature == "__call__":
                tokenized = _from_packed(self._model(strings), self.special)
            else:
                tokenized = _tokenized(self._model.tokenize(strings))
        return self._with_spans(texts, tokenized)

    def _with_spans(self, texts: Sequence[bytes], tokenized: TokenizedTexts) -> TokenizedTexts:
        """The spans that BERT's tokenizer finds, for texts where it finds the same pieces."""
        if self._offsets is None:
            return tokenized
        own = self._offsets.tokenize_texts(texts)
        if own.spans is None or np.array_equal(own.tokens, tokenized.tokens):
            return replace(tokenized, spans=own.spans)
        spans = np.zeros((len(tokenized.tokens), 2), np.uint32)
        for text in range(len(texts)):
            start, stop = tokenized.row_splits[text : text + 2]
            first, last = own.row_splits[text : text + 2]
            # A preprocessor that packs to one length may have dropped a text's end.
            last = min(last, first + stop - start)
            if np.array_equal(tokenized.tokens[start:stop], own.tokens[first:last]):
                spans[start:stop] = own.spans[first:last]
        return replace(tokenized, spans=spans)


def names_vocabulary(model: Any) -> bool:
    """Whether a module tells its vocabulary, so that it needs no preprocessor."""
    if TOKENIZATION_SIGNATURE in signatures_of(model):
        return True
    return hasattr(model, "vocab_file") and hasattr(model, "do_lower_case")


def probe_preprocessor(handle: str, model: Any, path: Path) -> ModuleFacts:
    """What a preprocessor puts around a text, and what it can tell.

    Raises:
        ModuleError: if it does not do what the Hub's preprocessors do.
    """
    import tensorflow as tf

    with mapped_errors(handle, "does not take a batch of strings"):
        packed = {name: tensor.numpy() for name, tensor in model(tf.constant(["", "a"])).items()}
    around = packed[IDS][0][packed[MASK][0] == 1]
    padding = packed[IDS][0][packed[MASK][0] == 0]
    tokenizes = hasattr(model, "tokenize")
    facts = ModuleFacts(
        kind=PREPROCESSOR,
        signature="tokenize" if tokenizes else "__call__",
        dim=0,
        tokenizer="preprocessor",
        start_ids=tuple(int(piece) for piece in around[:1]),
        end_ids=tuple(int(piece) for piece in around[1:]),
        padding_id=int(padding[0]) if len(padding) else 0,
        max_length=0 if tokenizes else int(packed[IDS].shape[1]),
        vocab_size=_vocab_size(model, path),
    )
    if tokenizes and _offsets_function(model) is not None:
        return replace(facts, offsets="module")
    return replace(facts, offsets=_find_offsets(handle, model, path, facts))


def _find_offsets(handle: str, model: Any, path: Path, facts: ModuleFacts) -> str:
    """Whether BERT's tokenizer, over the vocabulary that lies there, finds the same pieces."""
    if not (path / VOCABULARY_FILE).is_file():
        return ""
    texts = [text.encode() for text in _PROBE_TEXTS]
    pieces = HubPreprocessor(handle, model, path, facts).tokenize_texts(texts).tokens
    for case in ("lower", "cased"):
        try:
            own = VocabularyTokenizer(path / VOCABULARY_FILE, lower_case=case == "lower")
        except ModuleError:
            return ""
        if np.array_equal(own.tokenize_texts(texts).tokens, pieces):
            return case
    return ""


def _offsets_function(model: Any) -> Any:
    """What gives pieces with byte offsets; None where nothing does."""
    inner = getattr(getattr(model, "tokenize", None), "tokenize_with_offsets", None)
    return inner or getattr(model, "tokenize_with_offsets", None)


def _vocab_size(model: Any, path: Path) -> int:
    special = getattr(getattr(model, "tokenize", None), "get_special_tokens_dict", None)
    if special is not None:
        size = special().get("vocab_size")
        if size is not None:
            return int(size)
    file = path / VOCABULARY_FILE
    return len(file.read_bytes().splitlines()) if file.is_file() else 0


def _tokenized(ids: Any, starts: Any = None, limits: Any = None) -> TokenizedTexts:
    """Ragged tensors of pieces, by text or by text and word → `TokenizedTexts`."""
    flat = [_flat(ragged) for ragged in (ids, starts, limits) if ragged is not None]
    pieces = flat[0].values.numpy()
    splits = np.asarray(flat[0].row_splits.numpy(), np.int64)
    spans = None
    if len(flat) > 1:
        spans = np.stack([part.values.numpy() for part in flat[1:]], axis=1).astype(np.uint32)
    return TokenizedTexts(pieces.astype(np.int32), splits, spans, pieces.astype(np.uint32))


def _flat(ragged: Any) -> Any:
    """Words × pieces of each text as one row of pieces."""
    while ragged.shape.rank > 2:
        ragged = ragged.merge_dims(1, 2)
    return ragged


def _from_packed(packed: Any, special: SpecialIds) -> TokenizedTexts:
    """What is packed to one length, without special tokens and padding.

    A text that fills the length may have been cut by the preprocessor: it is taken to be.
    """
    ids, mask = packed[IDS].numpy(), packed[MASK].numpy() == 1
    num_start, num_special = len(special.start), len(special.start) + len(special.end)
    lengths = mask.sum(axis=1) - num_special
    columns = np.arange(ids.shape[1])
    inside = (columns >= num_start) & (columns < (num_start + lengths)[:, np.newaxis])
    pieces: NDArray[Any] = ids[inside]
    return TokenizedTexts(
        pieces.astype(np.int32),
        splits_of_lengths(lengths),
        None,
        pieces.astype(np.uint32),
        mask.all(axis=1),
    )
