"""FeatureView: all that changes the numbers, and its fingerprint."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from hashlib import blake2b
from typing import Any

from embedcache.errors import StoreVersionError

SCHEMA_VERSION = 1
STORAGE_DTYPES = ("float16", "float32")
OVERFLOW_POLICIES = ("truncate", "error")
MAX_TOKENS_DEFAULT = 512
"""Longest matrix by default. Cuts none of Kim's (2014) sentences (longest: 59 tokens) and
bounds what one runaway line can cost: 512 × 128 × 2 bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureView:
    """All that changes the numbers of a feature; nothing else.

    Two stores that hold the same fingerprint hold the same features. The handle is not
    in it: the same files under another name give the same vectors.

    Attributes:
        module_digest: BLAKE2b of the module's files (see `embedcache.modules.digest`).
        signature: The callable used: ``"__call__"`` or a signature's name.
        output: The output used of a module that returns several; empty if it returns one.
        granularity: What a row stands for; ``"token"``.
        tokenizer: ``"module"`` for the module's own ``tokenize``, ``"space"`` for single
            spaces, as nnlm splits.
        dim: The embedding width.
        max_tokens: Rows kept of a text at most.
        overflow: What happens to a longer one: ``"truncate"`` or ``"error"``.
        dtype: The storage dtype, ``"float16"`` or ``"float32"``.
        schema: Version of this list of fields.

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
    schema: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        for field in fields(self):
            value, wanted = getattr(self, field.name), str if field.type == "str" else int
            fits = isinstance(value, wanted) and not isinstance(value, bool)
            _require(fits, field.name, value, (wanted.__name__,))
        _require(self.dtype in STORAGE_DTYPES, "dtype", self.dtype, STORAGE_DTYPES)
        _require(self.overflow in OVERFLOW_POLICIES, "overflow", self.overflow, OVERFLOW_POLICIES)
        _require(self.max_tokens >= 1, "max_tokens", self.max_tokens, ("at least 1",))
        _require(self.dim >= 1, "dim", self.dim, ("at least 1",))

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces, ASCII. What the fingerprint is made of."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> FeatureView:
        """The view of `to_json`'s text.

        Raises:
            ValueError: if it is not JSON, or has other fields than this version knows.
            StoreVersionError: if a newer embedcache made the view.
        """
        record: Any = json.loads(text)
        known = {field.name for field in fields(cls)}
        schema = record.get("schema") if isinstance(record, dict) else None
        if isinstance(schema, int) and schema > SCHEMA_VERSION:
            raise StoreVersionError(
                f"view schema {schema}, this embedcache reads up to {SCHEMA_VERSION}; upgrade"
                " embedcache"
            )
        if not isinstance(record, dict) or set(record) != known:
            raise ValueError(f"a view has the fields {', '.join(sorted(known))}; got: {text[:200]}")
        return cls(**record)

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal digits: the 16-byte BLAKE2b of the canonical JSON."""
        return blake2b(self.to_json().encode(), digest_size=16).hexdigest()


def _require(condition: bool, name: str, value: object, legal: tuple[str, ...]) -> None:
    if not condition:
        raise ValueError(f"{name} must be {' or '.join(legal)}: got {value!r}")
