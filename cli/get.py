"""`embedcache get`: the stored matrix of a text."""

from __future__ import annotations

from collections.abc import Sequence

import click

from cli.common import json_option, open_user_store, print_json

_SHOWN_COLUMNS = 6
_MAX_SURFACE = 32


@click.command("get")
@click.argument("text")
@click.option("--view", metavar="VIEW", help="Fingerprint, or its beginning.  [default: the view"
              " of the newest dataset]")  # fmt: skip
@json_option
@click.pass_context
def command(context: click.Context, text: str, view: str | None, as_json: bool) -> None:
    """Print the features of TEXT, a row a token."""
    from embedcache.keys import key_of_text, utf8_of_text

    with open_user_store(context) as store:
        record = store.catalog.find_view(view or store.newest_view())
        refs, reader = store.locate(record.view, [text])
        values = reader.gather(refs)[0]
        (known,) = reader.token_records(refs)
    tokens = None if known.spans is None else surfaces(utf8_of_text(text), known.spans.tolist())
    ids = None if known.token_ids is None else known.token_ids.tolist()
    if as_json:
        print_json(
            {
                "key": key_of_text(text).hex(),
                "view": record.fingerprint,
                "num_tokens": len(values),
                "dim": record.view.dim,
                "dtype": record.view.dtype,
                "truncated": bool(refs.truncated[0]),
                "windowed": bool(refs.windowed[0]),
                "tokens": tokens,
                "spans": None if known.spans is None else known.spans.tolist(),
                "token_ids": ids,
                "values": values.tolist(),
            }
        )
        return
    click.echo(f"key {key_of_text(text).hex()}, view {record.fingerprint[:12]} ({record.handle})")
    cut = ", cut" if refs.truncated[0] else ""
    cut += ", stitched from windows" if refs.windowed[0] else ""
    click.echo(f"{len(values)} tokens × {record.view.dim} {record.view.dtype}{cut}")
    for row, name in zip(values, _row_names(len(values), tokens, ids), strict=True):
        numbers = " ".join(f"{number:8.4f}" for number in row[:_SHOWN_COLUMNS])
        click.echo(name + numbers + (" …" if len(row) > _SHOWN_COLUMNS else ""))


def surfaces(text: bytes, spans: Sequence[Sequence[int]]) -> list[str]:
    """What of a text each row stands for; empty for a special token."""
    return [text[start:end].decode(errors="replace") for start, end in spans]


def _row_names(num_rows: int, tokens: Sequence[str] | None, ids: Sequence[int] | None) -> list[str]:
    """A column of tokens and ids, as far as they are known."""
    names = [_shortened(token) for token in tokens] if tokens is not None else [""] * num_rows
    if ids is not None:
        names = [f"{name}  {number:>6}" for name, number in zip(_aligned(names), ids, strict=True)]
    aligned = _aligned(names)
    return [f"{name}  " for name in aligned] if any(map(str.strip, names)) else aligned


def _shortened(token: str) -> str:
    shown = " ".join(token.split())
    return shown if len(shown) <= _MAX_SURFACE else shown[: _MAX_SURFACE - 1] + "…"


def _aligned(names: Sequence[str]) -> list[str]:
    width = max(map(len, names), default=0)
    return [name.ljust(width) for name in names]
