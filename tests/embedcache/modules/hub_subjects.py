"""The tiny modules of every kind, probed once a session, and what is known of each."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import embedcache
from embedcache.pinning import PinnedModule, pin_module
from tests.embedcache.modules.encoder_contract import Subject, is_the_token
from tests.hub_modules.kinds import BAD_MODULES, GOOD_MODULES
from tests.hub_modules.shelf import ModuleShelf, shelf_folder
from tests.hub_modules.vocabulary import PIECES, UNKNOWN

_MODULES = {module.name: module for module in (*GOOD_MODULES, *BAD_MODULES)}


class HubModules:
    """The tiny modules by name, each made and probed at first use. Not to be changed.

    Args:
        shelf: Has the modules.
        folder: Of this process alone.

    Attributes:
        store_path: A store that keeps what was found of them.
    """

    def __init__(self, shelf: ModuleShelf, folder: Path) -> None:
        self._shelf = shelf
        self.store_path = folder / "store"
        # What is found of a preprocessor is kept for the next encoder that has it.
        self._catalog = embedcache.open_store(self.store_path).catalog

    def path(self, name: str) -> Path:
        """The folder of a module."""
        return self._shelf.path_of(_MODULES[name])

    def preprocess(self, name: str) -> Path | None:
        """The folder of its preprocessor; None where it has none."""
        module = _MODULES[name]
        return self._shelf.preprocess_of(module) if module.preprocess else None

    def arguments(self, name: str) -> list[str]:
        """What names it, and its preprocessor, on a command line."""
        preprocess = self.preprocess(name)
        beside = ["--preprocess", str(preprocess)] if preprocess else []
        return ["--module", str(self.path(name)), *beside]

    def pinned(self, name: str) -> PinnedModule:
        """The module as a build finds it."""
        preprocess = self.preprocess(name)
        path = str(self.path(name))
        return pin_module(self._catalog, path, preprocess=str(preprocess) if preprocess else None)

    def tell(self, store: Path, *names: str) -> None:
        """Let a store know what the probe found of modules, as if it had met them before."""
        with embedcache.open_store(store) as opened:
            for name in names:
                module = self.pinned(name)
                for part in (module, module.preprocess):
                    if part is not None:
                        opened.catalog.add_module_facts(part.digest, part.facts.to_json())

    def close(self) -> None:
        """Forget what was found."""
        self._catalog.close()

    def subject(self, name: str, **settings: Any) -> Subject:
        """A module for the contract, under views of some settings."""
        pinned = self.pinned(name)
        facts = pinned.facts
        if facts.kind in ("preprocessed-encoder", "tf1-bert"):
            only_packs = pinned.preprocess is not None and pinned.preprocess.facts.max_length
            return Subject(
                source=pinned,
                settings=settings,
                special=(1, 1),
                window_error="has no tokenize" if only_packs else "",
                vocab_size=len(PIECES),
                stands_for=stands_for_piece(lower_case=name != "bert-cased"),
            )
        granularity = settings.get("granularity")
        return Subject(
            source=pinned,
            settings=settings,
            counts_empty=facts.tokenizer == "space" and granularity is None,
            stands_for=_is_within_the_token if granularity == "window" else is_the_token,
        )


_SHARED = pytest.StashKey[HubModules]()


def shared_hub_modules(
    config: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> HubModules:
    """One and the same for all files of a session, for a fixture in each of them."""
    if _SHARED not in config.stash:
        shelf = ModuleShelf(shelf_folder(tmp_path_factory))
        hub = HubModules(shelf, tmp_path_factory.mktemp("hub"))
        config.stash[_SHARED] = hub
        config.add_cleanup(hub.close)
    return config.stash[_SHARED]


def names_of(*kinds: str) -> list[str]:
    """The good modules of some kinds, or all of them."""
    return [module.name for module in GOOD_MODULES if not kinds or module.kind in kinds]


def _is_within_the_token(token: Any, surface: str) -> bool:
    return surface.encode() in bytes(token)


def stands_for_piece(*, lower_case: bool) -> Callable[[Any, str], bool]:
    """Whether a piece's id can be what BERT's tokenizer makes of a piece of text."""

    def stands_for(piece_id: Any, surface: str) -> bool:
        piece = PIECES[int(piece_id)]
        if piece == UNKNOWN:
            return True
        if lower_case:
            surface = unicodedata.normalize("NFD", surface.lower())
        kept = (c for c in surface if unicodedata.category(c) not in ("Mn", "Cc", "Cf"))
        return "".join(kept) == piece.removeprefix("##")

    return stands_for
