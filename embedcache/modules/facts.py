"""What a probe of a module finds, kept by the module's digest."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

PROBE_VERSION = 2

BAG_OF_WORDS = "bag-of-words"
SENTENCE_ENCODER = "sentence-encoder"
PREPROCESSED_ENCODER = "preprocessed-encoder"
PREPROCESSOR = "preprocessor"
ELMO = "elmo"
TF1_BERT = "tf1-bert"
SEQUENCE_KINDS = (PREPROCESSED_ENCODER, ELMO, TF1_BERT)
"""The kinds whose rows depend on the whole text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A per-token output of a module.

    Attributes:
        name: What `--layer` calls it: ``"3"``, ``"sequence_output"``, ``"lstm_outputs1"``.
        dim: Its width.
    """

    name: str
    dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleFacts:
    """How to get per-token matrices from a module.

    Attributes:
        kind: One of the constants of this file.
        signature: ``"__call__"``, or the name of the signature that is called.
        output: The output that is read unless another is asked for; empty where there is
            only one.
        dim: The width of that output; 0 for a preprocessor.
        tokenizer: Who splits a text (see `embedcache.modules.splitting`).
        combiner: ``"sum"``, ``"mean"`` or ``"sqrtn"``: how a bag of words combines its
            tokens; empty for other kinds.
        layers: The layers that ``--layer mean`` and ``all`` take, from the bottom.
        outputs: Per-token outputs that are no layer of their own (``elmo``,
            ``sequence_output``).
        max_length: Tokens of the longest sequence taken, special ones included; 0: no
            limit was found.
        fixed_length: The one length that is taken; 0: any.
        start_ids: A preprocessor's special tokens before a text.
        end_ids: Those after it.
        padding_id: What it pads with.
        vocab_size: Entries of its vocabulary; 0: not known.
        offsets: Where a preprocessor's byte offsets come from: ``"module"``, ``"lower"`` or
            ``"cased"`` (its vocabulary, with the tokenizer of BERT), or empty: nowhere.
        probe: Version of the probe that found this.
    """

    kind: str
    signature: str
    output: str = ""
    dim: int
    tokenizer: str
    combiner: str = ""
    layers: tuple[Layer, ...] = ()
    outputs: tuple[Layer, ...] = ()
    max_length: int = 0
    fixed_length: int = 0
    start_ids: tuple[int, ...] = ()
    end_ids: tuple[int, ...] = ()
    padding_id: int = 0
    vocab_size: int = 0
    offsets: str = ""
    probe: int = PROBE_VERSION

    def to_json(self) -> str:
        """JSON with sorted keys."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ModuleFacts | None:
        """The facts of `to_json`'s text; None if another version of the probe wrote them."""
        record: Any = json.loads(text)
        known = {field.name for field in fields(cls)}
        if set(record) != known or record["probe"] != PROBE_VERSION:
            return None
        for name in ("layers", "outputs"):
            record[name] = tuple(Layer(**layer) for layer in record[name])
        for name in ("start_ids", "end_ids"):
            record[name] = tuple(record[name])
        return cls(**record)
