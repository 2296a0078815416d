"""The table of ``docs/reliability.md``."""

from __future__ import annotations

import os
import platform
import re
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import h5py

from tests.reliability.outcome import Outcome

START_MARK = "<!-- results: written by `python -m tests.reliability.run` -->"
END_MARK = "<!-- end of results -->"
_HEADER = (
    "| harness | what was done | seed | time | lost | wrong | crashed |",
    "|---|---|---|---|---|---|---|",
)


@dataclass(frozen=True, slots=True)
class Row:
    """One harness's row.

    Attributes:
        name: Its module.
        text: The whole line.
        seconds: How long it took.
        is_clean: Whether nothing was found.
    """

    name: str
    text: str
    seconds: float
    is_clean: bool

    @classmethod
    def of(cls, name: str, title: str, seed: int, outcome: Outcome, seconds: float) -> Row:
        found = outcome.findings
        done = outcome.done or "nothing"
        if outcome.skipped:
            done += f"; left out: {outcome.skipped}"
        cells = [
            f"{title} (`{name}`)", done, str(seed), f"{seconds:,.0f} s",
            *(f"{count:,}" for count in (found.lost, found.wrong, found.crashed)),
        ]  # fmt: skip
        return cls(name, f"| {' | '.join(cells)} |", seconds, found.is_clean)


def replace_rows(page: str, rows: Sequence[Row], order: Sequence[str], machine: str) -> str:
    """The page with these rows in its table; those of other harnesses stay.

    Args:
        page: The page, with both marks.
        rows: The new ones.
        order: All names, in the order of the table.
        machine: Where they come from.
    """
    start = page.index(START_MARK) + len(START_MARK)
    end = page.index(END_MARK)
    known = {
        match[1]: line
        for line in page[start:end].splitlines()
        if (match := re.match(r"\| .*? \(`(\w+)`\) \|", line))
    }
    known.update({row.name: row.text for row in rows})
    lines = [*_HEADER, *(known[name] for name in order if name in known), "", machine]
    return page[:start] + "\n\n" + "\n".join(lines) + "\n\n" + page[end:]


def describe_machine() -> str:
    """When and where, for the last rows written."""
    day = datetime.now(UTC).strftime("%Y-%m-%d")
    versions = f"HDF5 {h5py.version.hdf5_version}, SQLite {sqlite3.sqlite_version}"
    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors"
    return f"Last run {day}: {system}, Python {platform.python_version()}, {versions}."
