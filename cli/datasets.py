"""`embedcache datasets`: the corpora that were registered."""

from __future__ import annotations

import click

from cli.common import format_time, json_option, open_user_store, print_json, print_table


@click.group("datasets")
def command() -> None:
    """Registered corpora and their versions."""


@command.command("list")
@json_option
@click.pass_context
def list_datasets(context: click.Context, as_json: bool) -> None:
    """List all versions of all datasets, oldest first."""
    with open_user_store(context) as store:
        records = store.catalog.datasets()
    if as_json:
        rows = [
            {
                "name": record.name,
                "version": record.version,
                "texts": record.num_documents,
                "unique": record.num_unique,
                "created_at": record.created_at,
            }
            for record in records
        ]
        print_json({"datasets": rows})
        return
    print_table(
        [
            (
                record.name,
                record.version[:12],
                f"{record.num_documents:,}",
                f"{record.num_unique:,}",
                format_time(record.created_at),
            )
            for record in records
        ],
        ("dataset", "version", "texts", "distinct", "registered"),
    )


@command.command("show")
@click.argument("dataset")
@json_option
@click.pass_context
def show_dataset(context: click.Context, dataset: str, as_json: bool) -> None:
    """Show the splits, labels and files of DATASET (NAME or NAME@VERSION)."""
    with open_user_store(context) as store:
        record = store.catalog.find_dataset(dataset)
        loaded = store.open_dataset(record)
        view = store.catalog.newest_view_of(record.version)
    fields = {
        "name": record.name,
        "version": record.version,
        "view": view,
        "texts": record.num_documents,
        "unique": record.num_unique,
        "splits": loaded.count_splits(),
        "labels": loaded.count_labels(),
        "sources": list(record.sources),
    }
    if as_json:
        print_json(fields)
        return
    for name, value in fields.items():
        click.echo(f"{name:8} {value}")
