"""What the parts of the catalog share: one database, and how an unknown name is told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from embedcache.store.database.sqlite import Database


class CatalogTables:
    """Some tables of the catalog. Constructing it opens nothing."""

    def __init__(self, path: Path, *, lock_timeout_s: float) -> None:
        self._path = path
        self._database = Database(path, lock_timeout_s=lock_timeout_s)


def unknown_name(what: str, name: str, known: Sequence[str], *, several: bool) -> str:
    """The message about a name that fits nothing, or several things."""
    if several:
        return f"several {what}s begin with {name!r}: {', '.join(known)}; write more of the name"
    if not known:
        maker = "train" if what == "run" else "build"
        return f"no {what} {name!r}: the store has none yet; `embedcache {maker}` makes one"
    shown = ", ".join(known[:20]) + (", …" if len(known) > 20 else "")
    return f"no {what} {name!r}; there are: {shown}"
