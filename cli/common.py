"""What several commands share: the store's place, options, and how results are printed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from embedcache.store.store import FeatureStore

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object and nothing else."
)


def store_path(context: click.Context) -> Path:
    """The store that the user named, or the default one."""
    if context.obj == "":
        raise click.UsageError("--store is empty; name a folder, or leave the option out")
    if context.obj is not None:
        return Path(os.path.expanduser(context.obj))
    from platformdirs import user_data_path

    return user_data_path("embedcache", appauthor=False)


def open_user_store(context: click.Context, *, create: bool = False) -> FeatureStore:
    """Open the store of a command."""
    from embedcache.store.store import open_store

    return open_store(store_path(context), create=create)


def read_lines(path: str) -> list[str]:
    """The lines of a UTF-8 file, or of standard input for ``-``.

    Raises:
        CorpusError: if it cannot be read; names the line.
    """
    from embedcache.corpus import CorpusOptions, CorpusReader, Source

    reader = CorpusReader([Source(path, None)], CorpusOptions(format="txt"))
    return [line.decode() for batch in reader for line in batch.texts]


def print_json(record: Mapping[str, Any]) -> None:
    """One JSON object on standard output."""
    text = json.dumps(dict(record), ensure_ascii=False, allow_nan=False)
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        # A path that is not UTF-8: escaped, it can be printed.
        text = json.dumps(dict(record), allow_nan=False)
    click.echo(text)


def print_table(rows: Sequence[Sequence[object]], header: Sequence[str]) -> None:
    """Rows in aligned columns."""
    cells = [list(map(str, row)) for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo(line.rstrip())


def plural(count: int, what: str) -> str:
    """``1, "run"`` → ``1 run``; ``2,000, "run"`` → ``2,000 runs``."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def format_bytes(num_bytes: float) -> str:
    """``5201920`` → ``5.2 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


def format_time(timestamp_s: float) -> str:
    """Seconds since 1970 → local date and time."""
    from datetime import datetime

    return datetime.fromtimestamp(timestamp_s).astimezone().strftime("%Y-%m-%d %H:%M")


def percent(fraction: float) -> str:
    """``0.796`` → ``79.6 %``."""
    return f"{100 * fraction:.1f} %"
