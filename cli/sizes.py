"""Sizes and times as a user writes them."""

from __future__ import annotations

import re

import click

_UNITS = {
    "": 1, "B": 1,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40,
}  # fmt: skip


def size(text: str) -> int:
    """``10GB``, ``500 MB``, ``1.5GiB`` or plain bytes → bytes; for an option's ``type``."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    unit = _UNITS.get(found[2].upper()) if found else None
    if found is None or unit is None:
        raise click.BadParameter(f"{text!r} is no size; write one such as 500MB, 10GB or 1.5GiB")
    return round(float(found[1]) * unit)


grace_option = click.option(
    "--grace",
    type=click.FloatRange(0),
    default=3600.0,
    show_default=True,
    metavar="SECONDS",
    help="How long files that are not needed any more stay, for readers that are about to open"
    " them.",
)
