"""`embedcache views`: the feature views of the store."""

from __future__ import annotations

from dataclasses import asdict

import click

from cli.common import (
    format_bytes,
    json_option,
    open_user_store,
    plural,
    print_json,
    print_table,
)
from cli.compact import print_sweep
from cli.sizes import grace_option


@click.group("views")
def command() -> None:
    """Feature views: a module with the settings that change its numbers."""


@command.command("list")
@json_option
@click.pass_context
def list_views(context: click.Context, as_json: bool) -> None:
    """List the views, oldest first."""
    with open_user_store(context) as store:
        views = store.stats()["views"]
    if as_json:
        print_json({"views": views})
        return
    rows = [(view["fingerprint"][:12], view["module"] or "?", view["texts"]) for view in views]
    print_table(rows, ("view", "module", "texts"))


@command.command("show")
@click.argument("view")
@json_option
@click.pass_context
def show_view(context: click.Context, view: str, as_json: bool) -> None:
    """Show the fields of VIEW (a fingerprint or its beginning)."""
    with open_user_store(context) as store:
        record = store.catalog.find_view(view)
    fields = {
        "fingerprint": record.fingerprint,
        "handle": record.handle,
        "preprocess": record.preprocess,
        **asdict(record.view),
        "schema": record.view.schema,
        "checked_texts": record.checked_texts,
        "max_difference": record.max_difference,
        "rms_error": record.rms_error,
        "max_error": record.max_error,
    }
    if as_json:
        print_json(fields)
        return
    print_table(list(fields.items()), ("field", "value"))


@command.command("delete")
@click.argument("view")
@click.option("--yes", is_flag=True, help="Do it; without, it is refused.")
@grace_option
@json_option
@click.pass_context
def delete_view(context: click.Context, view: str, yes: bool, grace: float, as_json: bool) -> None:
    """Delete the features of VIEW (a fingerprint or its beginning), and all it is known by.

    Datasets and runs stay; a run on it cannot predict any more until its texts are built again.
    """
    from embedcache.errors import StoreError
    from embedcache.store.upkeep import deleting

    with open_user_store(context) as store:
        record = store.catalog.find_view(view)
        shards = store.catalog.shards(record.fingerprint)
        num_bytes = sum(shard.num_bytes for shard in shards)
        texts = sum(shard.num_texts for shard in shards)
        what = f"{plural(len(shards), 'shard')}, {plural(texts, 'text')}, {format_bytes(num_bytes)}"
        if not yes:
            raise StoreError(
                f"view {record.fingerprint[:12]} ({record.handle or '?'}) has {what}; they are"
                " deleted with --yes"
            )
        swept = deleting.delete_view(store, record, grace_s=grace)
    if as_json:
        print_json(
            {"view": record.fingerprint, "shards": len(shards), "texts": texts, "bytes": num_bytes}
        )
        return
    click.echo(f"view {record.fingerprint[:12]} is no more: {what}")
    print_sweep(swept)
