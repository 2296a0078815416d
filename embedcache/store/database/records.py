"""The rows of the catalog, as values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
        rms_error: What the storage dtype costs: the square root of the summed squares of the
            errors over those of the numbers; None if it was never measured.
        max_error: The largest error of a number, as a share of its row's largest; None if
            it was never measured.
    """

    fingerprint: str
    view: FeatureView
    handle: str
    preprocess: str = ""
    checked_texts: int = 0
    max_difference: float = 0.0
    rms_error: float | None = None
    max_error: float | None = None


@dataclass(frozen=True, slots=True)
class ModulePin:
    """The digest that the files behind a handle must have."""

    handle: str
    digest: str
    pinned_at: float


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """What the catalog knows of a shard; its digest is also its file's name.

    ``created_at`` is when it was catalogued, in seconds since 1970; 0 before that.
    """

    digest: str
    view: str
    num_texts: int
    num_tokens: int
    num_bytes: int
    created_at: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class RetiredRecord:
    """What the catalog names no more and whose files are not deleted yet.

    Attributes:
        kind: ``"shard"`` or ``"dataset"``.
        digest: The shard's, or the version of the dataset.
        view: Fingerprint of the shard's view; empty for a dataset.
        num_bytes: Of its files.
        retired_at: In seconds since 1970.
    """

    kind: str
    digest: str
    view: str
    num_bytes: int
    retired_at: float


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
class BuildRecord:
    """One build of a dataset version under a view: ``report`` is what it printed."""

    dataset: str
    version: str
    view: str
    report: Mapping[str, Any]
    created_at: float


@dataclass(frozen=True, slots=True)
class UseRecord:
    """When a dataset's features under a view were last built or read."""

    view: str
    version: str
    used_at: float


@dataclass(frozen=True, slots=True)
class RunRecord:
    """An experiment: ``record`` is what ``train --json`` printed."""

    run: str
    dataset: str
    version: str
    view: str
    record: Mapping[str, Any]
    created_at: float
