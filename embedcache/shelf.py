"""The modules at hand: bundled, fetched, or pinned by a store. Needs no TensorFlow.

What needs both the module cache and a store's catalog is here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from embedcache.errors import ModuleError
from embedcache.modules.builtin import BUILTIN_NAMES, builtin_path
from embedcache.modules.cache import ModuleCache, default_cache_path
from embedcache.modules.digests import files_digest, module_files
from embedcache.modules.handles import resolve_handle
from embedcache.modules.known import known_preprocess
from embedcache.modules.parsing import BUILTIN_PREFIX, parse_handle
from embedcache.store.publish import mapped_os_errors
from embedcache.store.store import FeatureStore, open_store

_IN_PLACE = ("builtin", "folder")
"""Kinds of handles whose files are used where they lie."""


@contextmanager
def existing_store(path: Path) -> Iterator[FeatureStore | None]:
    """A store while a block runs; None where there is nothing, or an empty folder.

    Raises:
        StoreError: if there is something that is not a usable store.
    """
    with mapped_os_errors(path):
        is_there = path.exists() and not (path.is_dir() and not any(path.iterdir()))
    if not is_there:
        yield None
        return
    with open_store(path, create=False) as store:
        yield store


@dataclass(frozen=True, slots=True)
class FetchedModule:
    """A module that is on this machine now.

    Attributes:
        handle: As the user gave it.
        path: The SavedModel's folder.
        bytes: Of its files.
        digest: Of them.
        in_place: Whether it is a bundled module or a folder, for which nothing is fetched.
        preprocess: The handle of the preprocessor that goes with it; None: none is known.
    """

    handle: str
    path: str
    bytes: int
    digest: str
    in_place: bool
    preprocess: str | None

    def to_record(self) -> dict[str, Any]:
        """As a dict of JSON values."""
        return asdict(self)


def fetch_module(handle: str, *, refresh: bool = False) -> FetchedModule:
    """Fetch a module into the user's cache, unless it is there or is used where it lies.

    Args:
        handle: The module's.
        refresh: Fetch it again and replace the copy.

    Raises:
        ModuleError: if it cannot be fetched, or is no whole SavedModel.
    """
    if parse_handle(handle).kind in _IN_PLACE:
        path = resolve_handle(handle)
        digest = files_digest(path)
        return FetchedModule(handle, str(path), _num_bytes(path), digest, True, None)
    cached = ModuleCache(default_cache_path()).fetch(handle, refresh=refresh)
    return FetchedModule(
        handle, str(cached.path), cached.num_bytes, cached.digest, False, known_preprocess(handle)
    )


@dataclass(frozen=True, slots=True)
class NewPin:
    """What a store has pinned now.

    Attributes:
        handle: The module's, right in any working folder.
        digest: The digest that its files must have from now on.
        before: What was pinned before; None: nothing.
    """

    handle: str
    digest: str
    before: str | None

    def to_record(self) -> dict[str, Any]:
        """As a dict of JSON values."""
        return asdict(self)


def pin_files(store_path: Path, handle: str, *, digest: str | None = None) -> NewPin:
    """Pin the digest that a module's files have now; the store is made if it is not there.

    Args:
        store_path: The store's folder.
        handle: The module's; fetched if need be.
        digest: What their digest must be; None: whatever it is.

    Raises:
        ModuleError: if the files have another digest, or there is no such module.
        StoreError: if the store cannot be made or written.
    """
    path = resolve_handle(handle)
    found = files_digest(path)
    if digest is not None and digest != found:
        raise ModuleError(
            f"{handle}: its files in {path} have the digest {found}, not {digest}; nothing was"
            " pinned; restore the files, or leave --digest out to accept these"
        )
    lasting = parse_handle(handle).lasting
    with open_store(store_path, create=True) as store:
        before = store.catalog.module_pin(lasting)
        store.catalog.pin_module(lasting, found)
    return NewPin(lasting, found, before)


@dataclass(frozen=True, slots=True)
class Removal:
    """What was taken away.

    Attributes:
        handle: As the user gave it.
        removed: Whether the cache had a copy.
        unpinned: Whether the store had a pin.
    """

    handle: str
    removed: bool
    unpinned: bool

    def to_record(self) -> dict[str, Any]:
        """As a dict of JSON values."""
        return asdict(self)


def remove_module(store: FeatureStore | None, handle: str) -> Removal:
    """Take a fetched module out of the user's cache, and its pin out of a store.

    Files that are used where they lie are left alone, and so are features.

    Raises:
        ModuleError: if there is neither copy nor pin.
    """
    cache = ModuleCache(default_cache_path())
    removed = cache.remove(handle)
    unpinned = store.catalog.unpin_module(parse_handle(handle).lasting) if store else False
    if not removed and not unpinned:
        pinned = f"nor pinned in {store.path}" if store else "and there is no store"
        raise ModuleError(
            f"{handle}: is not in the module cache {cache.path}, {pinned}; `embedcache modules"
            " list` shows what is"
        )
    return Removal(handle, removed, unpinned)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedModule:
    """A module that is at hand, or that a store knows.

    Attributes:
        handle: Its handle.
        place: ``"builtin"``, ``"cache"``, ``"folder"``, ``"archive"`` (not unpacked yet), or
            ``"missing"``: not on this machine.
        path: Its folder or archive; None where it is missing.
        num_bytes: Of its files; None where they were not looked at.
        digest: Of them, likewise.
        fetched_at: When it came into the cache, UTC; None for others.
        pinned: The digest that the store has pinned; None: none.
        views: Fingerprint → number of texts, of the store's views that are made with it, be it
            as their preprocessor.
    """

    handle: str
    place: str
    path: Path | None = None
    num_bytes: int | None = None
    digest: str | None = None
    fetched_at: datetime | None = None
    pinned: str | None = None
    views: Mapping[str, int] = field(default_factory=dict)

    def to_record(self) -> dict[str, Any]:
        """As a dict of JSON values."""
        views = [{"fingerprint": view, "texts": texts} for view, texts in self.views.items()]
        return {
            "handle": self.handle,
            "place": self.place,
            "path": None if self.path is None else str(self.path),
            "bytes": self.num_bytes,
            "digest": self.digest,
            "fetched_at": None if self.fetched_at is None else self.fetched_at.isoformat(),
            "pinned": self.pinned,
            "views": views,
        }


def list_modules(store: FeatureStore | None) -> list[ListedModule]:
    """Bundled modules, those in the user's cache, and those that a store knows."""
    modules = [*_bundled_modules(), *_cached_modules()]
    if store is None:
        return modules
    pins = {pin.handle: pin.digest for pin in store.catalog.module_pins()}
    uses = _uses_of_modules(store)
    known = {handle for use in uses for handle in use.handles} | set(pins)
    others = sorted(known - {module.handle for module in modules})
    modules += map(_known_module, others)
    pinned = [replace(module, pinned=pins.get(module.handle)) for module in modules]
    return [
        replace(module, views={use.view: use.num_texts for use in uses if use.is_of(module)})
        for module in pinned
    ]


def _bundled_modules() -> Iterator[ListedModule]:
    for name in BUILTIN_NAMES:
        path = builtin_path(name)
        yield ListedModule(
            handle=BUILTIN_PREFIX + name,
            place="builtin",
            path=path,
            num_bytes=_num_bytes(path),
            digest=files_digest(path),
        )


def _cached_modules() -> Iterator[ListedModule]:
    for cached in ModuleCache(default_cache_path()).list():
        yield ListedModule(
            handle=cached.handle,
            place="cache",
            path=cached.path,
            num_bytes=cached.num_bytes,
            digest=cached.digest,
            fetched_at=cached.fetched_at,
        )


def _known_module(handle: str) -> ListedModule:
    """A module that only the store knows."""
    path = Path(handle)
    if handle.startswith(BUILTIN_PREFIX) or not path.exists():
        return ListedModule(handle=handle, place="missing")
    return ListedModule(handle=handle, place="folder" if path.is_dir() else "archive", path=path)


@dataclass(frozen=True, slots=True)
class _Use:
    """A view, and the modules that it is made with."""

    view: str
    num_texts: int
    handles: frozenset[str]
    digests: frozenset[str]

    def is_of(self, module: ListedModule) -> bool:
        """By handle, or by files: the same files under another handle are the same view."""
        return module.handle in self.handles or bool(
            self.digests & {module.digest or "", module.pinned or ""}
        )


def _uses_of_modules(store: FeatureStore) -> list[_Use]:
    num_texts: dict[str, int] = defaultdict(int)
    for shard in store.catalog.shards():
        num_texts[shard.view] += shard.num_texts
    return [
        _Use(
            record.fingerprint,
            num_texts[record.fingerprint],
            frozenset({record.handle, record.preprocess} - {""}),
            frozenset({record.view.module_digest, record.view.preprocess_digest} - {""}),
        )
        for record in store.catalog.views()
    ]


def _num_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in module_files(path))
