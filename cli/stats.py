"""`embedcache stats`: what the store holds."""

from __future__ import annotations

import click

from cli.common import format_bytes, json_option, open_user_store, plural, print_json, print_table


@click.command("stats")
@json_option
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """Say what the store holds."""
    with open_user_store(context) as store:
        record = store.stats()
    if as_json:
        print_json(record)
        return
    click.echo(f"{record['path']}: {format_bytes(record['bytes'])} of features")
    click.echo(f"{plural(record['datasets'], 'dataset')}, {plural(record['runs'], 'run')}")
    rows = [
        (
            view["fingerprint"][:12],
            view["module"] or "?",
            f"{view['texts']:,}",
            f"{view['tokens']:,}",
            format_bytes(view["bytes"]),
            view["shards"],
        )
        for view in record["views"]
    ]
    if rows:
        print_table(rows, ("view", "module", "texts", "tokens", "bytes", "shards"))
