"""Handle → view: what is known of a module, found out at most once.

A build in which every text hits must not import TensorFlow; so what a probe found is kept
in the catalog by the module's digest, and the digest by the sizes and times of its files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from embedcache.encoder import TokenEncoder
from embedcache.errors import ModuleChangedError, UnknownNameError
from embedcache.modules.facts import ModuleFacts
from embedcache.modules.handles import files_digest, files_stamp, is_folder, resolve_handle
from embedcache.store.catalog import Catalog
from embedcache.store.records import ViewRecord
from embedcache.view import FeatureView


@dataclass(frozen=True, slots=True)
class PinnedModule:
    """A module whose files were digested and which was probed, now or before.

    Attributes:
        handle: What the user named it by; of a folder the absolute path.
        path: The SavedModel's folder.
        digest: Of its files.
        facts: What the probe found.
    """

    handle: str
    path: Path
    digest: str
    facts: ModuleFacts

    def view(self, *, max_tokens: int, overflow: str, dtype: str) -> FeatureView:
        """The feature view of this module with these settings."""
        return FeatureView(
            module_digest=self.digest,
            signature=self.facts.signature,
            output=self.facts.output,
            tokenizer=self.facts.tokenizer,
            dim=self.facts.dim,
            max_tokens=max_tokens,
            overflow=overflow,
            dtype=dtype,
        )

    def load_encoder(self) -> TokenEncoder:
        """Load the module; this imports TensorFlow.

        Raises:
            ModuleError: if it cannot be loaded.
        """
        from embedcache.modules.bag_of_words import load_encoder

        return load_encoder(self.handle, self.path, self.facts)


def pin_module(catalog: Catalog | None, handle: str, *, keep: bool = True) -> PinnedModule:
    """Digest and probe a module, or recall what was found before.

    Args:
        catalog: Where the findings are kept; None: nowhere.
        handle: See `resolve_handle`.
        keep: Whether new findings are kept.

    Raises:
        ModuleError: if there is no such module, or it is not of a kind that can be used.
    """
    path = resolve_handle(handle)
    if is_folder(handle):
        # What is kept must still be right in another working folder.
        handle = str(path)
    digest = _known_digest(catalog, path, keep=keep)
    known = catalog.module_facts(digest) if catalog else None
    facts = ModuleFacts.from_json(known) if known else None
    if facts is None:
        from embedcache.modules.bag_of_words import probe_module

        facts = probe_module(handle, path)
        if catalog and keep:
            catalog.add_module_facts(digest, facts.to_json())
    return PinnedModule(handle, path, digest, facts)


def _known_digest(catalog: Catalog | None, path: Path, *, keep: bool) -> str:
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
        ModuleChangedError: if the files behind the view's handle are others now.
        UnknownNameError: if the handle is not known (the catalog was rebuilt from shards).
    """
    if not record.handle:
        raise UnknownNameError(
            f"view {record.fingerprint[:12]}: its module's handle was lost with the catalog; run"
            " `embedcache build` with that --module once"
        )
    module = pin_module(catalog, record.handle)
    if module.digest != record.view.module_digest:
        raise ModuleChangedError(
            f"{record.handle}: its files have the digest {module.digest}, view"
            f" {record.fingerprint[:12]} was made with {record.view.module_digest}; restore the"
            " old files, or build again to make a new view"
        )
    return module
