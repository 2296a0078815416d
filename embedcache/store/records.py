"""The rows of the catalog, as values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from embedcache.view import FeatureView


@dataclass(frozen=True, slots=True)
class ViewRecord:
    """A view the store knows, and the handle its module was last named by."""

    fingerprint: str
    view: FeatureView
    handle: str


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """What the catalog knows of a shard; its digest is also its file's name."""

    digest: str
    view: str
    num_texts: int
    num_tokens: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class DatasetRecord:
    """A version of a registered corpus."""

    name: str
    version: str
    num_documents: int
    num_unique: int
    sources: Sequence[Mapping[str, Any]]
    created_at: float


@dataclass(frozen=True, slots=True)
class RunRecord:
    """An experiment: ``record`` is what ``train --json`` printed."""

    run: str
    dataset: str
    version: str
    view: str
    record: Mapping[str, Any]
    created_at: float
