"""Handle → view: what is known of a module, found out at most once.

A build in which every text hits must not import TensorFlow; so what a probe found is kept
in the catalog by the module's digest, and the digest by the sizes and times of its files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from embedcache.encoder import SequenceEncoder, TokenEncoder
from embedcache.errors import ModuleChangedError, ModuleError, UnknownNameError
from embedcache.modules.facts import PREPROCESSED_ENCODER, PREPROCESSOR, ModuleFacts
from embedcache.modules.handles import (
    IMPORTED_PREFIX,
    IMPORTED_SIGNATURE,
    files_digest,
    files_stamp,
    is_folder,
    resolve_handle,
)
from embedcache.modules.known import known_preprocess
from embedcache.modules.loading import ModuleFiles
from embedcache.modules.loading import load_encoder as load_module_encoder
from embedcache.modules.parsing import parse_handle
from embedcache.modules.settings import ViewSettings, view_of_module
from embedcache.store.database.catalog import Catalog
from embedcache.store.database.records import ViewRecord
from embedcache.view import FeatureView

_SIBLING = "preprocess"
"""The folder beside an encoder's own in which `modules convert` puts its preprocessor."""


@dataclass(frozen=True, slots=True)
class PinnedModule:
    """A module whose files were digested and which was probed, now or before.

    Attributes:
        handle: What the user named it by; of a folder the absolute path.
        path: The SavedModel's folder.
        digest: Of its files.
        facts: What the probe found.
        preprocess: The preprocessor of a preprocessed encoder; None for other kinds.
    """

    handle: str
    path: Path
    digest: str
    facts: ModuleFacts
    preprocess: PinnedModule | None = None

    @property
    def files(self) -> ModuleFiles:
        """Where it lies and what it is."""
        return ModuleFiles(self.handle, self.path, self.facts)

    @property
    def preprocess_handle(self) -> str:
        """That of the preprocessor; empty without one."""
        return self.preprocess.handle if self.preprocess else ""

    def view(self, settings: ViewSettings) -> FeatureView:
        """The feature view of this module with these settings.

        Raises:
            ModuleError: if they do not fit the module.
        """
        preprocess = self.preprocess
        return view_of_module(
            self.files,
            settings,
            digest=self.digest,
            preprocess_digest=preprocess.digest if preprocess else "",
            preprocess=preprocess.facts if preprocess else None,
        )

    def load_encoder(self, view: FeatureView) -> TokenEncoder | SequenceEncoder:
        """Load the module for one of its views; this imports TensorFlow.

        Raises:
            ModuleError: if it cannot be loaded.
        """
        preprocess = self.preprocess.files if self.preprocess else None
        return load_module_encoder(self.files, view, preprocess=preprocess)


def pin_module(
    catalog: Catalog | None, handle: str, *, preprocess: str | None = None, keep: bool = True
) -> PinnedModule:
    """Digest and probe a module, or recall what was found before.

    The digest under which a store first met a handle is its pin.

    Args:
        catalog: Where the findings are kept; None: nowhere.
        handle: See `resolve_handle`.
        preprocess: The handle of its preprocessor; None: the one that is known for it, or
            that lies beside it.
        keep: Whether new findings are kept.

    Raises:
        ModuleError: if there is no such module, or it is not of a kind that can be used.
        ModuleChangedError: if its files are not those that the store has pinned.
    """
    module = _pin(catalog, handle, keep=keep)
    if module.facts.kind == PREPROCESSOR:
        raise ModuleError(
            f"{handle}: is a preprocessor; name its encoder with --module, and this one with"
            " --preprocess"
        )
    if module.facts.kind != PREPROCESSED_ENCODER:
        if preprocess is not None:
            raise ModuleError(
                f"{handle}: splits texts by itself ({module.facts.kind}); leave --preprocess out"
            )
        return module
    found = preprocess or _find_preprocess(handle, module.path)
    pinned = _pin(catalog, found, keep=keep)
    if pinned.facts.kind != PREPROCESSOR:
        raise ModuleError(
            f"{found}: is no preprocessor but of the kind {pinned.facts.kind}; name the one that"
            " the encoder's page names with --preprocess"
        )
    return PinnedModule(module.handle, module.path, module.digest, module.facts, pinned)


def _find_preprocess(handle: str, path: Path) -> str:
    known = known_preprocess(handle)
    if known is not None:
        return known
    sibling = path.parent / _SIBLING
    if is_folder(handle) and (sibling / "saved_model.pb").is_file():
        return str(sibling)
    raise ModuleError(
        f"{handle}: takes ids of word pieces, and no preprocessor is known for it; name the one"
        " that its page names with --preprocess"
    )


def _pin(catalog: Catalog | None, handle: str, *, keep: bool) -> PinnedModule:
    path = resolve_handle(handle)
    # What is kept must still be right in another working folder.
    handle = parse_handle(handle).lasting
    digest = module_digest(catalog, path, keep=keep)
    pinned = catalog.module_pin(handle) if catalog else None
    if pinned is not None and pinned != digest:
        raise ModuleChangedError(
            f"{handle}: its files have the digest {digest}, this store has pinned {pinned};"
            f" restore the old files, or accept the new ones with `embedcache modules pin {handle}`"
        )
    facts = _facts(catalog, handle, path, digest, keep=keep)
    if catalog and keep and pinned is None:
        catalog.pin_module(handle, digest)
    return PinnedModule(handle, path, digest, facts)


def _facts(
    catalog: Catalog | None, handle: str, path: Path, digest: str, *, keep: bool
) -> ModuleFacts:
    known = catalog.module_facts(digest) if catalog else None
    facts = ModuleFacts.from_json(known) if known else None
    if facts is None:
        from embedcache.modules.probe import probe_module

        facts = probe_module(handle, path)
        if catalog and keep:
            catalog.add_module_facts(digest, facts.to_json())
    return facts


def module_digest(catalog: Catalog | None, path: Path, *, keep: bool = True) -> str:
    """The digest of a module's files, read anew only if their sizes or times have changed."""
    if catalog is None:
        return files_digest(path)
    stamp = files_stamp(path)
    digest = catalog.module_digest(str(path), stamp)
    if digest is None:
        digest = files_digest(path)
        if keep:
            catalog.add_module_digest(str(path), stamp, digest)
    return digest


def pin_module_of_view(catalog: Catalog, record: ViewRecord) -> PinnedModule:
    """The module that a view was made with.

    Raises:
        ModuleChangedError: if the files behind the view's handles are others now.
        ModuleError: if its features were imported: no module is known then.
        UnknownNameError: if the handle is not known (the catalog was rebuilt from shards).
    """
    view, name = record.view, record.fingerprint[:12]
    if view.signature == IMPORTED_SIGNATURE:
        # Also where the name was lost with the catalog.
        raise ModuleError(
            f"view {name} ({record.handle or IMPORTED_PREFIX + '?'}): its features were imported,"
            " and the module that made them is not known, so a text that was not imported cannot"
            " be computed; bring it with `embedcache import`, or build a view with a module"
        )
    if not record.handle:
        raise UnknownNameError(
            f"view {name}: its module's handle was lost with the catalog; run"
            " `embedcache build` with that --module once"
        )
    module = pin_module(catalog, record.handle, preprocess=record.preprocess or None)
    parts = [(module.handle, module.digest, view.module_digest)]
    if module.preprocess is not None:
        preprocess = module.preprocess
        parts.append((preprocess.handle, preprocess.digest, view.preprocess_digest))
    for handle, digest, made_with in parts:
        if digest != made_with:
            raise ModuleChangedError(
                f"{handle}: its files have the digest {digest}, view {name} was made with"
                f" {made_with}; restore the old files, or build again to make a new view"
            )
    return module
