"""The rows of the catalog, as values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from embedcache.view import FeatureView


@dataclass(frozen=True, slots=True)
class ViewRecord:
    """A view the store knows, and what its module was last named by.

    Attributes:
        fingerprint: The view's.
        view: What its features were made with.
        handle: The module's; empty if it was lost with an older catalog.
        preprocess: Its preprocessor's; empty without one.
        checked_texts: Texts that builds have computed again, alone, to compare.
        max_difference: The largest difference that this has shown.
    """

    fingerprint: str
    view: FeatureView
    handle: str
    preprocess: str = ""
    checked_texts: int = 0
    max_difference: float = 0.0


@dataclass(frozen=True, slots=True)
class ModulePin:
    """The digest that the files behind a handle must have."""

    handle: str
    digest: str
    pinned_at: float


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
