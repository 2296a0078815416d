"""What a probe of a module finds, kept by the module's digest."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

PROBE_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleFacts:
    """How to get per-token matrices from a module.

    Attributes:
        kind: ``"bag-of-words"``: a text's vector is a combination of its tokens' vectors.
        signature: ``"__call__"``, or the name of the signature that is called.
        output: The signature's output that is read; empty where there is only one.
        tokenizer: ``"module"``: its own ``tokenize``; ``"space"``: single spaces.
        combiner: ``"sum"``, ``"mean"`` or ``"sqrtn"``: how the module combines its tokens.
        dim: The embedding width.
        probe: Version of the probe that found this.
    """

    kind: str
    signature: str
    output: str
    tokenizer: str
    combiner: str
    dim: int
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
        return cls(**record)
