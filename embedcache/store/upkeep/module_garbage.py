"""What the catalog knows of modules that nothing names any more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from embedcache.store.database.catalog import Catalog


@dataclass(frozen=True, slots=True)
class ModuleGarbage:
    """What is known of modules and is of no use; it is found again if it is needed.

    Attributes:
        paths: Where there were modules once.
        facts: The digests of modules that have no view, no pin and no files, and the size of
            what a probe found of each.
    """

    paths: tuple[str, ...]
    facts: Mapping[str, int]

    def __bool__(self) -> bool:
        return bool(self.paths or self.facts)


def find_module_garbage(catalog: Catalog) -> ModuleGarbage:
    """What is known of modules that nothing names any more."""
    files = catalog.module_files()
    gone = tuple(path for path in sorted(files) if not Path(path).exists())
    named = {digest for path, digest in files.items() if path not in gone}
    named |= {pin.digest for pin in catalog.module_pins()}
    for record in catalog.views():
        named |= {record.view.module_digest, record.view.preprocess_digest}
    facts = catalog.module_facts_bytes()
    stale = {digest: size for digest, size in sorted(facts.items()) if digest not in named}
    return ModuleGarbage(gone, stale)
