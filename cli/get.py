"""`embedcache get`: the stored matrix of a text."""

from __future__ import annotations

import click

from cli.common import json_option, open_user_store, print_json

_SHOWN_COLUMNS = 6


@click.command("get")
@click.argument("text")
@click.option("--view", metavar="VIEW", help="Fingerprint, or its beginning.  [default: the view"
              " of the newest dataset]")  # fmt: skip
@json_option
@click.pass_context
def command(context: click.Context, text: str, view: str | None, as_json: bool) -> None:
    """Print the features of TEXT, a row a token."""
    from embedcache.keys import key_of_text

    with open_user_store(context) as store:
        record = store.catalog.find_view(view or store.newest_view())
        refs, reader = store.locate(record.view, [text])
        values = reader.gather(refs)[0]
    if as_json:
        print_json(
            {
                "key": key_of_text(text).hex(),
                "view": record.fingerprint,
                "num_tokens": len(values),
                "dim": record.view.dim,
                "dtype": record.view.dtype,
                "truncated": bool(refs.truncated[0]),
                "values": values.tolist(),
            }
        )
        return
    click.echo(f"key {key_of_text(text).hex()}, view {record.fingerprint[:12]} ({record.handle})")
    cut = ", cut" if refs.truncated[0] else ""
    click.echo(f"{len(values)} tokens × {record.view.dim} {record.view.dtype}{cut}")
    for row in values:
        numbers = " ".join(f"{number:8.4f}" for number in row[:_SHOWN_COLUMNS])
        click.echo(numbers + (" …" if len(row) > _SHOWN_COLUMNS else ""))
