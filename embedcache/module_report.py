"""What a module is, and what a build would make of it: ``modules inspect``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from embedcache.encoder import SequenceEncoder, TokenEncoder
from embedcache.errors import ModuleError
from embedcache.modules.digests import module_files
from embedcache.modules.facts import PREPROCESSOR, ModuleFacts
from embedcache.modules.handles import parse_handle, resolve_handle
from embedcache.modules.inspection import (
    SavedModelContents,
    describe_build,
    describe_saved_model,
    describe_tokenizer,
    find_facts,
)
from embedcache.modules.settings import ViewSettings
from embedcache.pinning import PinnedModule, module_digest, pin_module
from embedcache.store.database.catalog import Catalog
from embedcache.view import FeatureView


@dataclass(frozen=True, slots=True)
class FilesReport:
    """A module's files.

    Attributes:
        handle: The module's, right in any working folder.
        path: The SavedModel's folder.
        num_files: Files in it.
        num_bytes: Of them together.
        digest: Of them.
        pinned: The digest that the store has pinned; None: none, or no store.
    """

    handle: str
    path: Path
    num_files: int
    num_bytes: int
    digest: str
    pinned: str | None

    @property
    def pin_agrees(self) -> bool | None:
        """Whether the files are those that are pinned; None without a pin."""
        return None if self.pinned is None else self.pinned == self.digest


@dataclass(frozen=True, slots=True)
class SpecialIds:
    """Vocabulary ids that are put before and after a text."""

    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOutlook:
    """What a build with the default settings would do with a module.

    Attributes:
        text: What a row would be, and what can be chosen; empty if it would refuse.
        reason: Why it would refuse; empty if it would not.
        view: The default view; None if it would refuse.
        preprocess: The preprocessor it would use; None without one.
        special_ids: None where there are none, or they are not known.
        max_length: Tokens of the longest sequence taken, special ones included; None: no limit
            is known.
    """

    text: str = ""
    reason: str = ""
    view: FeatureView | None = None
    preprocess: PinnedModule | None = None
    special_ids: SpecialIds | None = None
    max_length: int | None = None


@dataclass(frozen=True, slots=True)
class ModuleReport:
    """What a module is.

    Attributes:
        files: Its files.
        contents: Its signatures and calls.
        facts: What its probe found; None if it is no text module of a known kind.
        outlook: What a build would do with it.
    """

    files: FilesReport
    contents: SavedModelContents
    facts: ModuleFacts | None
    outlook: BuildOutlook

    @property
    def vocab_size(self) -> int | None:
        """Entries of its vocabulary or of its preprocessor's; None: not known."""
        preprocess = self.outlook.preprocess
        known = (self.facts, preprocess.facts if preprocess else None)
        return next((facts.vocab_size for facts in known if facts and facts.vocab_size), None)

    def to_record(self) -> dict[str, Any]:
        """As a dict of JSON values: ``modules inspect --json``."""
        files, outlook, view = self.files, self.outlook, self.outlook.view
        return {
            "handle": files.handle,
            "path": str(files.path),
            "files": files.num_files,
            "bytes": files.num_bytes,
            "digest": files.digest,
            "pinned": files.pinned,
            "pin_agrees": files.pin_agrees,
            **asdict(self.contents),
            **self._facts_record(),
            "max_length": outlook.max_length,
            "vocab_size": self.vocab_size,
            "special_ids": asdict(outlook.special_ids) if outlook.special_ids else None,
            "preprocess": outlook.preprocess.handle if outlook.preprocess else None,
            "usable": not outlook.reason,
            "reason": outlook.reason or None,
            "build": outlook.text or None,
            "granularity": view.granularity if view else None,
            "row_dim": view.dim if view else None,
            "dtype": view.dtype if view else None,
        }

    def _facts_record(self) -> dict[str, Any]:
        facts = self.facts
        if facts is None:
            names = ("kind", "called", "output", "dim", "tokenizer", "combiner")
            return {**dict.fromkeys(names), "layers": [], "outputs": []}
        return {
            "kind": facts.kind,
            "called": facts.signature,
            "output": facts.output or None,
            "dim": facts.dim or None,
            "tokenizer": describe_tokenizer(facts),
            "combiner": facts.combiner or None,
            "layers": [asdict(layer) for layer in facts.layers],
            "outputs": [asdict(layer) for layer in facts.outputs],
        }


def inspect_module(
    catalog: Catalog | None, handle: str, *, preprocess: str | None = None
) -> ModuleReport:
    """Fetch a module if need be, load it as a build would, and say what it is.

    Args:
        catalog: Whose pins and findings are used; nothing is written to it. None: no store.
        handle: The module's.
        preprocess: Its preprocessor's; None: as `pin_module` finds it.

    Raises:
        ModuleError: if a handle is not there, or the module cannot be loaded.
    """
    path = resolve_handle(handle)
    if preprocess is not None:
        resolve_handle(preprocess)
    files = _report_files(catalog, handle, path)
    try:
        facts, outlook = _try_build(catalog, handle, preprocess)
    except ModuleError as error:
        # Loaded once more: what does not load is an error, and no module that is refused.
        found = find_facts(handle, path)
        return ModuleReport(
            files, describe_saved_model(handle, path), found, _refusal(str(error), found)
        )
    return ModuleReport(files, describe_saved_model(handle, path), facts, outlook)


def _report_files(catalog: Catalog | None, handle: str, path: Path) -> FilesReport:
    files = module_files(path)
    lasting = parse_handle(handle).lasting
    return FilesReport(
        handle=lasting,
        path=path,
        num_files=len(files),
        num_bytes=sum(file.stat().st_size for file in files),
        digest=module_digest(catalog, path, keep=False),
        pinned=catalog.module_pin(lasting) if catalog else None,
    )


def _try_build(
    catalog: Catalog | None, handle: str, preprocess: str | None
) -> tuple[ModuleFacts, BuildOutlook]:
    """Do what a build does before its first text."""
    module = pin_module(catalog, handle, preprocess=preprocess, keep=False)
    view = module.view(ViewSettings())
    encoder = module.load_encoder(view)
    return module.facts, BuildOutlook(
        text=describe_build(handle, module.facts, view),
        view=view,
        preprocess=module.preprocess,
        special_ids=_special_ids(encoder),
        max_length=_max_length(module, encoder),
    )


def _special_ids(encoder: TokenEncoder | SequenceEncoder) -> SpecialIds | None:
    if not isinstance(encoder, SequenceEncoder) or not encoder.special_ids:
        return None
    before, _ = encoder.num_special
    return SpecialIds(encoder.special_ids[:before], encoder.special_ids[before:])


def _max_length(module: PinnedModule, encoder: TokenEncoder | SequenceEncoder) -> int | None:
    """The shorter of what the encoder takes and what its preprocessor gives."""
    if not isinstance(encoder, SequenceEncoder):
        return None
    given = module.preprocess.facts.max_length if module.preprocess else 0
    return min(filter(None, (encoder.max_length, given)), default=None)


def _refusal(reason: str, facts: ModuleFacts | None) -> BuildOutlook:
    """The outlook of what is refused: a preprocessor tells its ids all the same."""
    if facts is None or facts.kind != PREPROCESSOR:
        return BuildOutlook(reason=reason)
    special_ids = SpecialIds(facts.start_ids, facts.end_ids)
    return BuildOutlook(reason=reason, special_ids=special_ids, max_length=facts.max_length or None)
