"""`embedcache views`: the feature views of the store."""

from __future__ import annotations

from dataclasses import asdict

import click

from cli.common import json_option, open_user_store, print_json, print_table


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
    }
    if as_json:
        print_json(fields)
        return
    print_table(list(fields.items()), ("field", "value"))
