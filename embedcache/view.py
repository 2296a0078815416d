"""FeatureView: all that changes the numbers, and its fingerprint."""

from __future__ import annotations

import json
from dataclasses import MISSING, dataclass, fields
from hashlib import blake2b
from typing import Any

from embedcache.errors import StoreVersionError

SCHEMA_VERSION = 3
STORAGE_DTYPES = ("float16", "float32", "bfloat16", "int8")
OVERFLOW_POLICIES = ("truncate", "error", "window")
GRANULARITIES = ("token", "sentence", "window")
MAX_TOKENS_DEFAULT = 512
"""Longest matrix by default. Cuts none of Kim's (2014) sentences (longest: 59 tokens) and
bounds what one runaway line can cost: 512 × 128 × 2 bytes."""

_DTYPES_OF_SCHEMA_1 = ("float16", "float32")
_SINCE_SCHEMA_2 = (
    "context_words",
    "keep_special_tokens",
    "num_layers",
    "overlap_tokens",
    "preprocess_digest",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureView:
    """All that changes the numbers of a feature; nothing else.

    Two stores that hold the same fingerprint hold the same features. The handle is not
    in it: the same files under another name give the same vectors.

    Attributes:
        module_digest: BLAKE2b of the module's files (see `embedcache.modules.digests`).
        signature: The callable used: ``"__call__"`` or a signature's name.
        output: The output used of a module that returns several; empty if it returns one.
            Layers are joined by commas; ``"mean:3,4"`` is their mean, ``"all:3,4"`` keeps
            them apart for the trainer to mix.
        granularity: What a row stands for: ``"token"``, ``"sentence"``, or ``"window"``: a
            word with ``context_words`` on either side.
        tokenizer: Who splits the text: ``"module"`` its own ``tokenize``, ``"space"`` single
            spaces, as nnlm splits, and so on (see `embedcache.modules.splitting`).
        dim: The width of a row, all layers together.
        max_tokens: Rows kept of a text at most; with ``overflow="window"`` the longest
            window.
        overflow: What happens to a longer one: ``"truncate"``, ``"error"`` or ``"window"``:
            overlapping windows of it are stitched.
        dtype: The storage dtype: ``"float16"``, ``"float32"``, ``"bfloat16"``, or ``"int8"``
            with a scale for each row.
        preprocess_digest: Of the preprocessor's files; empty where there is none.
        keep_special_tokens: Whether rows of special tokens such as ``[CLS]`` are kept.
        num_layers: Layers of equal width that lie side by side in a row; above 1 for
            ``"all:…"`` only.
        context_words: With ``granularity="window"``, words on either side of the row's own.
        overlap_tokens: With ``overflow="window"``, tokens that two windows share.

    Raises:
        ValueError: if a field has no legal value.
    """

    module_digest: str
    signature: str
    output: str = ""
    granularity: str = "token"
    tokenizer: str
    dim: int
    max_tokens: int = MAX_TOKENS_DEFAULT
    overflow: str = "truncate"
    dtype: str = "float16"
    preprocess_digest: str = ""
    keep_special_tokens: bool = False
    num_layers: int = 1
    context_words: int = 0
    overlap_tokens: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, wanted = getattr(self, field.name), _TYPES[str(field.type)]
            _require(type(value) is wanted, field.name, value, (wanted.__name__,))
        _require(self.dtype in STORAGE_DTYPES, "dtype", self.dtype, STORAGE_DTYPES)
        _require(self.overflow in OVERFLOW_POLICIES, "overflow", self.overflow, OVERFLOW_POLICIES)
        _require(self.granularity in GRANULARITIES, "granularity", self.granularity, GRANULARITIES)
        _require(self.max_tokens >= 1, "max_tokens", self.max_tokens, ("at least 1",))
        _require(self.dim >= 1, "dim", self.dim, ("at least 1",))
        splits = self.num_layers >= 1 and self.dim % self.num_layers == 0
        _require(splits, "num_layers", self.num_layers, (f"a divisor of {self.dim}",))
        _require(self.context_words >= 0, "context_words", self.context_words, ("at least 0",))
        overlaps = 0 <= self.overlap_tokens < self.max_tokens
        limit = f"from 0 to below {self.max_tokens}"
        _require(overlaps, "overlap_tokens", self.overlap_tokens, (limit,))

    @property
    def schema(self) -> int:
        """The least version of the list of fields that can say what this view says.

        So the features of a module that needs no newer field keep their fingerprint, and
        stay hits, when embedcache learns of other kinds.
        """
        is_plain = all(getattr(self, name) == _DEFAULTS[name] for name in _SINCE_SCHEMA_2)
        is_known = self.granularity == "token" and self.overflow != "window"
        if self.dtype not in _DTYPES_OF_SCHEMA_1:
            return 3
        return 1 if is_plain and is_known else 2

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces, ASCII. What the fingerprint is made of."""
        record = {name: getattr(self, name) for name in _fields_of(self.schema)}
        return json.dumps({**record, "schema": self.schema}, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> FeatureView:
        """The view of `to_json`'s text.

        Raises:
            ValueError: if it is not JSON, or has other fields than its schema.
            StoreVersionError: if a newer embedcache made the view.
        """
        record: Any = json.loads(text)
        schema = record.pop("schema", None) if isinstance(record, dict) else None
        if type(schema) is int and schema > SCHEMA_VERSION:
            raise StoreVersionError(
                f"view schema {schema}, this embedcache reads up to {SCHEMA_VERSION}; upgrade"
                " embedcache"
            )
        if type(schema) is not int or schema < 1 or set(record) != set(_fields_of(schema)):
            known = ", ".join(sorted(_fields_of(SCHEMA_VERSION)))
            raise ValueError(f"a view has the fields {known}; got: {text[:200]}")
        view = cls(**record)
        if view.schema != schema:
            raise ValueError(f"a view of schema {schema} that schema {view.schema} could say")
        return view

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal digits: the 16-byte BLAKE2b of the canonical JSON."""
        return blake2b(self.to_json().encode(), digest_size=16).hexdigest()


_TYPES: dict[str, type] = {"str": str, "int": int, "bool": bool}
_DEFAULTS = {
    field.name: field.default for field in fields(FeatureView) if field.default is not MISSING
}


def _fields_of(schema: int) -> list[str]:
    """The names of a schema's fields, ``schema`` itself left out."""
    names = [field.name for field in fields(FeatureView)]
    return [name for name in names if schema > 1 or name not in _SINCE_SCHEMA_2]


def _require(condition: bool, name: str, value: object, legal: tuple[str, ...]) -> None:
    if not condition:
        raise ValueError(f"{name} must be {' or '.join(legal)}: got {value!r}")
